"""Stored arguments and texts: everything except passwords, tokens and the like."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import NamedTuple

import dramatiq
import pytest
import tiers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dramatiq_joblog import JobLog, current_job
from dramatiq_joblog.payload.redaction import Redactor
from dramatiq_joblog.payload.sanitize import document
from dramatiq_joblog.payload.secret_texts import REDACTED, scrub

#: In no name, and in no text of ours.
SECRET = "hunter2-Zx9"


def kept(value, names=(), redact=None):
    return json.loads(document(value, Redactor(redact), names).text)


@pytest.mark.parametrize(
    "name",
    [
        *("password", "PassWord", "user_password", "new-password", "passwd", "db.passwd", "pwd"),
        *("passphrase", "secret", "client_secret", "token", "csrfToken", "access_token", "tokens"),
        *("authorization", "Proxy-Authorization", "api key", "apiKey", "X-API-Key", "API_KEY"),
        *("aws_secret_access_key", "credential", "credentials", "private_key", "privateKey"),
        *("cookie", "Set-Cookie", "session", "session_id", "PHPSESSIONID", "card_number"),
        *("creditCard", "cvv", "cvc", "pin", "basic_auth", "jwt"),
    ],
)
def test_names_of_secrets(name):
    """The value of a secret's name is redacted, at any depth and in any spelling."""
    deep = {"a": [{"b": ({name: SECRET},)}], "n": 7}

    assert {"a": [{"b": [{name: REDACTED}]}], "n": 7} == kept(deep)
    assert {name: REDACTED} == kept({name: {"is": ["all", SECRET]}})
    assert [1, REDACTED] == kept([1, SECRET], ["n", name])


@pytest.mark.parametrize(
    "name",
    ["author", "max_tokens", "key", "keys", "sessions", "tokenizer", "user_id", "iban", "spin"],
)
def test_names_of_other_things(name):
    """Names that only sound like secrets are kept, and so are account numbers."""
    assert {name: "x"} == kept({name: "x"})


@pytest.mark.parametrize("nothing", [None, "", True, False])
def test_that_there_is_none(nothing):
    """Whether a password is present is not a secret."""
    assert {"password": nothing} == kept({"password": nothing})


def test_positional_arguments():
    """Arguments are named by their parameters; extra ones by the last."""
    names = ["user", "tokens"]
    assert ["ada", REDACTED, REDACTED] == kept(["ada", "a", "b"], names)
    assert [REDACTED] == kept([SECRET], ["password"])


@dataclass
class Login:
    """Has a repr of its own names."""

    user: str
    password: str
    hidden: str = field(default=SECRET, repr=False)


class Pair(NamedTuple):
    """Names its items."""

    user: str
    password: str


class Opaque:
    """Has the given repr."""

    def __init__(self, text):
        self.text = text

    def __repr__(self):
        return self.text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (Login("ada", SECRET), "Login(user='ada', password='[redacted]')"),
        (Login("ada", f"\"{SECRET}' ,)"), "Login(user='ada', password='[redacted]')"),
        (Pair("ada", SECRET), ["ada", REDACTED]),
        (Opaque(f"<Login password={SECRET} of=ada>"), "<Login password=[redacted] of=ada>"),
        (
            Opaque(f"Login(password=Secret(value='{SECRET}', b=[1, {{2}}]), n=1)"),
            "Login(password=[redacted], n=1)",
        ),
        ({frozenset({("n", 1)})}, "{frozenset({('n', 1)})}"),
        (Opaque(f"{{'api_key': b'{SECRET}', 'n': 1}}"), "{'api_key': [redacted], 'n': 1}"),
    ],
)
def test_reprs(value, shown):
    """Values without a JSON form are stored as their ``repr``, without the secrets in it."""
    assert [shown] == kept([value])


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"postgresql://ada:{SECRET}@db/shop?a=b", "postgresql://ada:[redacted]@db/shop?a=b"),
        (f"redis://:{SECRET}@cache:6379/0", "redis://:[redacted]@cache:6379/0"),
        (f"amqp://a:{SECRET}@x,amqp://b:{SECRET}@y", "amqp://a:[redacted]@x,amqp://b:[redacted]@y"),
        (f"mysql://ada:a/{SECRET}@db/shop", "mysql://ada:[redacted]@db/shop"),
        (f"mysql://ada:a@{SECRET}@db/shop", "mysql://ada:[redacted]@db/shop"),
        (f"Bearer {SECRET}", "Bearer [redacted]"),
        (f"Authorization: Basic {SECRET}", "Authorization: Basic [redacted]"),
        (f"got 'Authorization': 'Bearer {SECRET}'", "got 'Authorization': '[redacted]'"),
        (f"it sent bearer {SECRET}abcdefgh as its key", "it sent bearer [redacted] as its key"),
        (f"host=db password={SECRET} user=ada", "host=db password=[redacted] user=ada"),
        (f"https://x.org/?api_key={SECRET}&n=1", "https://x.org/?api_key=[redacted]&n=1"),
        (f'{{"token": "{SECRET}", "n": 1}}', '{"token": \'[redacted]\', "n": 1}'),
        (
            f"-----BEGIN RSA PRIVATE KEY-----\n{SECRET}\n-----END RSA PRIVATE KEY-----\nx",
            "-----BEGIN RSA PRIVATE KEY-----[redacted]-----END RSA PRIVATE KEY-----\nx",
        ),
        ("https://x.org:8080/a/@ada?b=c", "https://x.org:8080/a/@ada?b=c"),
        ("mail ada@x.org: the bearer of this is 7", "mail ada@x.org: the bearer of this is 7"),
        ("basic income", "basic income"),
        (f"Basic {SECRET}", "Basic [redacted]"),
        ("a = b, c: d", "a = b, c: d"),
    ],
)
def test_texts(text, shown):
    """In a text, values in the form of a secret, or after a secret's name, are redacted."""
    assert [shown] == kept([text])
    assert SECRET not in json.dumps(kept({"deep": [text]}))


@pytest.mark.full
def test_long_texts():
    """A long text costs no more than its length, whatever it holds."""
    for part in ("a", "a.", "a=", "://", "://a:", "bearer ", "token=", "token=(", "'", "password "):
        text = part * (60_000 // len(part)) + "=@"
        assert kept([text])


#: Without a codec, whose characters Hypothesis would first look for in seconds.
any_text = st.text(st.characters(exclude_categories=["Cs"]))
any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | any_text,
    lambda inner: st.lists(inner) | st.dictionaries(st.text("abct_ 1"), inner),
)


@settings(
    max_examples=tiers.examples(100),
    deadline=None,
    # A machine that is busy is no fault.
    suppress_health_check=[HealthCheck.too_slow],
)
@given(any_json)
def test_what_has_no_secret_is_kept_as_it_is(value):
    """A value that is not a secret is returned itself, not a copy."""
    redactor = Redactor()
    assert value is redactor.value(value) or REDACTED in json.dumps(redactor.value(value))


@settings(
    max_examples=tiers.examples(100),
    deadline=None,
    # A machine that is busy is no fault.
    suppress_health_check=[HealthCheck.too_slow],
)
@given(any_json, st.sampled_from(["password", "API-Key", "x_token"]))
def test_no_secret_is_kept(value, name):
    """A secret is redacted, whatever its context, and the document notes it."""
    text, _, redacted = document([value, {"in": {name: SECRET}}], Redactor())
    assert SECRET not in text
    assert redacted


def test_more_names():
    """Additional names are redacted like the known ones."""
    assert {"iban": REDACTED, "password": REDACTED, "n": 1} == kept(
        {"iban": "DE02", "password": "x", "n": 1}, redact=["IBAN"]
    )
    assert {"customerIban": REDACTED} == kept({"customerIban": "DE02"}, redact="iban")


def test_a_hook():
    """A callable receives each name and value, and returns the value to store."""

    def last_digits(name, value):
        return f"...{value[-4:]}" if name == "iban" else value

    value = {"iban": "DE0212034567", "deep": [{"iban": "DE9999", "password": SECRET}]}
    assert {"iban": "...4567", "deep": [{"iban": "...9999", "password": REDACTED}]} == kept(
        value, redact=last_digits
    )
    assert ["...4567", 1] == kept(["DE0212034567", 1], ["iban", "n"], redact=last_digits)


def test_a_hook_that_fails(caplog):
    """A value whose callable raises is not stored, and the error is logged."""

    def broken(name, value):
        raise RuntimeError("no judgement")

    assert {"a": REDACTED} == kept({"a": 1}, redact=broken)
    assert "no judgement" in caplog.text


def test_nothing_is_redacted():
    """With ``redact=False``, everything is stored unchanged."""
    value = {"password": SECRET, "url": f"a://b:{SECRET}@c"}
    assert value == kept(value, redact=False)


@pytest.mark.parametrize("redact", [[7], [""], "--", 7])
def test_names_that_are_none(redact, sqlite_url):
    """A *redact* that is neither names nor a callable is refused."""
    with pytest.raises(TypeError):
        JobLog(sqlite_url, redact=redact)


def test_loops():
    """A value that contains itself is stored as text, without its secrets."""
    loop = [{"password": SECRET}]
    loop.append(loop)
    text, note, redacted = document(loop, Redactor())
    assert SECRET not in text
    assert "'password': '[redacted]'" in text
    assert redacted
    assert note


def test_scrub_leaves_names_alone():
    """In error messages, only values in the form of a secret are redacted."""
    text = "unexpected token: ')'"
    assert text is scrub(text)


def test_a_job_without_its_secrets(joblog, make_broker, worker):
    """No secret of a job's arguments, of its ``meta`` or of its error's text reaches the log."""
    broker = make_broker("stub", "last", joblog=joblog)

    @dramatiq.actor(max_retries=0)
    def login(user, password, *, url, api_key="", **more):
        held = SECRET + password  # noqa: F841 - a traceback could show it
        current_job().meta.update(token=password, user=user)
        raise ValueError(f"no answer from {url}")

    with worker(broker):
        sent = login.send(
            "ada", SECRET, url=f"https://a:{SECRET}@x.org/", api_key=SECRET, cvv=SECRET
        )
        broker.join("default", fail_fast=False)

    job = joblog.get(sent.message_id)
    assert ["ada", REDACTED] == job.args
    assert {
        "url": "https://a:[redacted]@x.org/",
        "api_key": REDACTED,
        "cvv": REDACTED,
    } == job.kwargs
    assert {"token": REDACTED, "user": "ada"} == job.meta
    assert "no answer from https://a:[redacted]@x.org/" == job.error_message
    [failure] = job.failures
    assert "held = SECRET + password" not in failure.traceback
    assert "raise ValueError" in failure.traceback
    for row in (*joblog.Job.select().dicts(), *joblog.Failure.select().dicts()):
        assert SECRET not in repr(row)
