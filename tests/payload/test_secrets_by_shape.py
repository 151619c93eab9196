"""A secret is recognised by its name, in any notation of name and value."""

from __future__ import annotations

import json
import time

import pytest

from dramatiq_joblog.payload.redaction import Redactor
from dramatiq_joblog.payload.sanitize import document

#: In no name, and in no text of ours.
SECRET = "Zx9hunter2"


def kept(value):
    return json.loads(document(value, Redactor()).text)


@pytest.mark.parametrize(
    "value",
    [
        [["user", "ada"], ["password", SECRET]],
        [("X-Api-Key", SECRET)],
        [(b"authorization", SECRET.encode())],
        {("password", SECRET)},
        {"headers": [["Cookie", f"a=1; b={SECRET}"], ["Host", "x"]]},
        [{"name": "DB_PASSWORD", "value": SECRET}],
        {"Key": "api_key", "Value": [SECRET]},
        {"ParameterKey": "Secret", "ParameterValue": SECRET},
        ["mysqldump", "--password", SECRET, "shop"],
        ["mysqldump", f"--password={SECRET}"],
        {"db_pass": SECRET},
        {"EMAIL_HOST_PASS": SECRET},
        {"pass": SECRET, "pw": SECRET},
        {"otp": SECRET, "passcode": SECRET},
        {"ssh_key": SECRET, "bearer": SECRET, "hmac_key": SECRET},
    ],
)
def test_values(value):
    """Pairs, headers, variables, command options and more names are redacted."""
    assert SECRET not in json.dumps(kept(value))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"pg_dump --password={SECRET} shop", "pg_dump --password=[redacted] shop"),
        (f"mysql --password {SECRET} shop", "mysql --password [redacted] shop"),
        (f"java -Dkey.storePassword={SECRET} x", "java -Dkey.storePassword=[redacted] x"),
        (f"{{'password' => '{SECRET}', 'n' => 1}}", "{'password' => '[redacted]', 'n' => 1}"),
        (f"password := {SECRET} ;", "password := [redacted] ;"),
        (
            f'<login><password type="t">{SECRET} x</password><n>1</n></login>',
            '<login><password type="t">[redacted]</password><n>1</n></login>',
        ),
        (f"<w:Password>{SECRET}</w:Password>", "<w:Password>[redacted]</w:Password>"),
        (f"<password><![CDATA[{SECRET}]]></password>", "<password>[redacted]</password>"),
        (f"postgresql://ada:{SECRET}@[::1]:5432/db", "postgresql://ada:[redacted]@[::1]:5432/db"),
        (f"redis://:p'{SECRET}@db/0", "redis://:[redacted]@db/0"),
        (f'redis://:p"{SECRET}@db/0', "redis://:[redacted]@db/0"),
        (f"https://{SECRET}4567890@github.com/a.git", "https://[redacted]@github.com/a.git"),
        (
            f"https://x/?next=https%3A%2F%2Fada%3A{SECRET}%40db&n=1",
            "https://x/?next=https%3A%2F%2Fada%3A[redacted]%40db&n=1",
        ),
        (f"https://b/c?X-Amz-Signature={SECRET}&n=1", "https://b/c?X-Amz-Signature=[redacted]&n=1"),
        (f"https://b/c?sv=1&sig={SECRET}", "https://b/c?sv=1&sig=[redacted]"),
    ],
)
def test_texts(text, shown):
    """Commands, XML, URLs and the ways to write a name and its value show no secret."""
    assert shown == kept(text)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_documents_within_documents(depth):
    """However deeply documents are nested, named secrets are redacted."""
    written = {"password": SECRET, "colour": "red"}
    for _ in range(depth):
        written = {"body": json.dumps(written)}
    text = json.dumps(kept(written))
    assert SECRET not in text
    assert "red" in text
    text = repr(repr({"password": SECRET, "n": 1}))
    assert SECRET not in kept(text)
    assert "'n': 1" in kept(text)


@pytest.mark.parametrize(
    "value",
    [
        [["ada", 1], ["eve", 2]],
        ["password", "token"],
        ["password", "email", "user"],
        {"name": "colour", "value": "red"},
        {"name": "password"},
        {"value": "x", "password_value": ""},
        ["ls", "-l", "--tokens-of", "x"],
        {"boarding_pass": "A1", "bypass": "x", "compass": "north", "signature_type": 1},
        "<title>On passwords</title> and <b>more</b>",
        "https://ada@github.com/a.git",
        "ssh://git@github.com/a.git",
        "a -> b, --verbose x",
        "http://a:80/x and 'http://b:81', 'c@d.e'",
        "0b7e1ad6-7a37-4d3b-9c51-0d9a2f1b8e11 - done",
    ],
)
def test_what_is_no_secret(value):
    """Text that only has such a form, or only names a secret, is unchanged."""
    assert value == kept(value)
    assert not document(value, Redactor()).redacted


@pytest.mark.few(2)
@pytest.mark.parametrize(
    "part", ["<password>", "<password>x</b>", "--password ", 'password\\": \\"', "password=", "<"]
)
def test_long_texts(part):
    """A long text that looks like secrets is processed in linear time."""
    began = time.thread_time()
    Redactor().text(part * 100_000 + "</")
    assert time.thread_time() - began < 10
