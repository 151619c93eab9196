"""Secrets enter in every possible way, and never come out."""

from __future__ import annotations

import json
import logging
import re
import sqlite3
import threading
from pathlib import Path
from urllib.parse import urlsplit

import dramatiq
import psycopg
import pymysql
import pytest
import servers
from click.testing import CliRunner
from cryptography.fernet import Fernet
from dramatiq import group, pipeline
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import (
    AsyncIO,
    Callbacks,
    GroupCallbacks,
    Pipelines,
    Retries,
    SkipMessage,
)
from dramatiq.rate_limits.backends import StubBackend
from pages import opened
from starlette.testclient import TestClient

from dramatiq_joblog import (
    DuplicateJob,
    Exclusive,
    JobLog,
    JobLogMiddleware,
    Unique,
    current_job,
)
from dramatiq_joblog.cli.main import program

#: Every secret has this in it; what comes before says which door it took.
MARK = "Zx9hunter2"
# Of a bounded length: some texts are one long word.
_FOUND = re.compile(rf"\w{{1,40}}-{MARK}")


def secret(door):
    """Return a secret that contains its entry point."""
    return f"{door}-{MARK}"


def leaks(text):
    """Return the entry points of the secrets in a text."""
    return sorted(set(_FOUND.findall(text)))


def unwrapped(function):
    """Decorate without ``functools.wraps``."""

    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    wrapper.__name__ = function.__name__
    return wrapper


@pytest.fixture(params=[False, True], ids=["unsealed", "sealed"])
def log(request, database_url, tmp_path):
    """Return a log on each database, without and with a key."""
    log = JobLog(
        database_url,
        seal_key=Fernet.generate_key() if request.param else None,
        spool=tmp_path / "spool",
    )
    log.create_tables()
    yield log
    log.close()


def broker_of(log):
    """Return the global broker with pipelines, groups and callbacks."""
    stack = [Pipelines(), Retries(max_retries=0), Callbacks(), GroupCallbacks(StubBackend())]
    broker = StubBroker(middleware=[*stack, AsyncIO(), JobLogMiddleware(log, outcome_log=True)])
    broker.emit_after("process_boot")
    dramatiq.set_broker(broker)
    return broker


@pytest.fixture
def broker(log):
    """Return a broker with the log."""
    broker = broker_of(log)
    yield broker
    broker.close()


def say(user, password):
    """Report a secret in all the ways that a job can."""
    job = current_job()
    job.progress(1, 2, f"trying {password}")
    job.log(f"{user} has {password}")
    job.meta.update(
        text=f"it was {password}",
        nested=[{"password": password}],
        message=dramatiq.get_broker().get_actor("login").message("ada", secret("meta")).asdict(),
        whole=dramatiq.get_broker().get_actor("login").message("ada", secret("metaobject")),
    )
    logging.getLogger("shop").warning("no login of %s with %s", user, password)
    logging.getLogger("shop").warning("%s %s", "x" * 9_990, password)
    try:
        {}[f"cause {password}"]
    except KeyError as e:
        raise ValueError(f"{user} has no password={password!r}, says\n  {password}") from e


def unwrapped_later(function):
    """Decorate a coroutine without ``functools.wraps``."""

    async def wrapper(*args, **kwargs):
        return await function(*args, **kwargs)

    wrapper.__name__ = function.__name__
    return wrapper


def login(user, password):
    say(user, password)


def fine(user, password):
    return {"password": password}


def named(user, *, api_key):
    say(user, api_key)


def many(user, *tokens):
    say(user, tokens[-1])


async def later(user, password):
    say(user, password)


@unwrapped
@unwrapped
def wrapped(user, password):
    say(user, password)


@unwrapped_later
async def wrapped_later(user, password):
    say(user, password)


def tell(message, outcome):
    raise RuntimeError(f"told of {message['args'][1]}")


def skips(user, password):
    raise SkipMessage(f"not with {password}")


def held(user, password):
    raise ValueError(f"it was {password}")


def held_by(user, password):
    raise ValueError(f"it was {password}")


def once(login):
    pass


def owned(user, password):
    pass


#: Actors, with their options.
ACTORS = (
    *((function, {}) for function in (login, fine, named, many, later, wrapped, wrapped_later)),
    *((function, {}) for function in (tell, skips)),
    (held, {"exclusive": "login:{password}"}),
    (
        held_by,
        {"exclusive": Exclusive(lambda user, password: f"by {password}", on_conflict="retry")},
    ),
    (once, {"unique": Unique("login:{login[password]}", until="finished")}),
    (owned, {"job_user": lambda user, password: user_of(password)}),
)


def declare():
    """Declare actors of each shape; return them by name."""

    class ByClass(dramatiq.GenericActor):
        class Meta:
            job_user = "user"

        def perform(self, user, password):
            say(user, password)

    actors = {f.__name__: dramatiq.actor(**options)(f) for f, options in ACTORS}
    return {**actors, "ByClass": ByClass}


def user_of(password):
    """Fail with the secret in the text."""
    raise LookupError(f"nobody has {password}")


def send_all(actors):
    """Send secrets through each entry point; return their number."""
    login, fine, tell = actors["login"], actors["fine"], actors["tell"]
    for name in ("login", "later", "wrapped", "wrapped_later", "ByClass", "skips", "held_by"):
        actors[name].send("ada", secret(f"{name}_args"))
        actors[name].send(user="ada", password=secret(f"{name}_kwargs"))
        actors[name].send_with_options(
            args=("ada", secret(f"{name}_callback")), on_failure="tell", on_success="tell"
        )
    actors["owned"].send("ada", secret("owned"))
    actors["held"].send("ada", secret("held"))
    actors["named"].send("ada", api_key=secret("named"))
    actors["many"].send("ada", secret("many1"), secret("many2"))
    fine.send_with_options(args=("ada", secret("success")), on_success=tell)
    pipeline([fine.message("ada", secret("pipe")), tell.message(), login.message("x")]).run()
    members = [fine.message("ada", secret("member")), fine.message("eve", secret("member2"))]
    asked = group(members)
    asked.add_completion_callback(login.message("ada", secret("completion")))
    asked.run()
    deep = {"in": [{"deeper": login.message("ada", secret("deep")).asdict()}]}
    fine.send_with_options(
        args=(deep, "x"), kwargs={}, my_messages=[deep], access_token=secret("o")
    )
    fine.send_with_options(
        args=("ada", "x"), pipe_target=login.message("ada", secret("target")).asdict()
    )
    loop = [login.message("ada", secret("loop")).asdict()]
    fine.send(json.loads(json.dumps(loop)), secret("beside"))
    fine.send(f"postgresql://ada:{secret('url')}@db/shop", {f"https://a:{secret('key')}@x": 1})
    actors["once"].send({"user": "ada", "password": secret("unique")})
    with pytest.raises(DuplicateJob) as refused:
        actors["once"].send({"user": "eve", "password": secret("unique")})
    assert [] == leaks(str(refused.value))


def rows_of(url):
    """Return all rows of all tables of a database, as text."""
    scheme = urlsplit(url).scheme
    if scheme == "sqlite":
        connection, names = sqlite3.connect(url.removeprefix("sqlite:///")), "main"
        question = "SELECT name FROM sqlite_master WHERE type = 'table'"
    elif scheme == "mysql":
        options = servers.mysql_options(url)
        connection, names = pymysql.connect(**options), options["database"]
        question = f"SELECT table_name FROM information_schema.tables WHERE table_schema='{names}'"
    else:
        connection = psycopg.connect(url)
        question = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
    cursor = connection.cursor()
    cursor.execute(question)
    texts = []
    for (table,) in cursor.fetchall():
        cursor.execute(f"SELECT * FROM {table}")
        texts += [f"{table}: {row!r}" for row in cursor.fetchall()]
    connection.close()
    return "\n".join(texts)


def files_in(folder):
    """Return the contents of all files below a folder."""
    return "\n".join(
        path.read_bytes().decode(errors="replace") for path in folder.rglob("*") if path.is_file()
    )


def pages_of(log):
    """Return the text of all pages of a log."""
    jids = list({job.actor: job.jid for job in log.jobs}.values())
    with TestClient(opened(log), client=("127.0.0.1", 1), base_url="http://localhost") as asking:
        paths = ["/", "/jobs", "/dead", "/locks", "/workers", "/actions", "/jobs.json", "/metrics"]
        paths += [f"/jobs/{jid}" for jid in jids]
        paths += [f"/confirm/requeue?jid={jid}" for jid in jids[:3]]
        answers = [asking.get(path) for path in paths]
    assert {200} == {answer.status_code for answer in answers}
    return "\n".join(answer.text for answer in answers)


def printed(log, url, *arguments):
    """Return the output of the command line."""
    done = CliRunner().invoke(program, ["--database", url, *arguments])
    assert done.exit_code in (0, 1), done.output
    return done.output


@pytest.mark.few(1)
def test_no_secret_comes_out(log, broker, worker, database_url, tmp_path, caplog):
    """A named secret is in no table, file, page, output or log line, whatever its entry point."""
    caplog.set_level(logging.DEBUG)
    actors = declare()
    # Before any runs: one that is unique is so until it ends.
    send_all(actors)
    with worker(broker, worker_threads=2):
        broker.join("default", fail_fast=False)
        for job in log.jobs.in_state("finished", "dead", "skipped"):
            if log.core.seal is not None and job.actor in ("login", "tell", "ByClass"):
                log.requeue(job.jid, who="ada")
        broker.join("default", fail_fast=False)
    jids = [job.jid for job in log.jobs]
    known = sum("[redacted]" in repr(job.__data__) for job in log.jobs)
    log.release()

    assert known > 30
    assert [] == leaks(rows_of(database_url))
    ours = [r for r in caplog.records if r.name.startswith("dramatiq_joblog")]
    assert ours
    assert [] == leaks("\n".join(logging.Formatter().format(record) for record in ours))
    assert [] == leaks(pages_of(log))
    for arguments in (["list"], ["export"], ["list", "--json"], ["locks"], ["actions"]):
        assert [] == leaks(printed(log, database_url, *arguments))
    for jid in jids[:5]:
        assert [] == leaks(printed(log, database_url, "show", jid))
    assert [] == leaks(files_in(tmp_path))


def test_no_secret_in_the_spool(sqlite_url, tmp_path, worker):
    """The spool has no secrets either."""
    log = JobLog(sqlite_url, spool=tmp_path / "spool")
    broker = broker_of(log)
    actors = declare()
    try:
        with worker(broker):
            for name in ("login", "ByClass", "wrapped"):
                actors[name].send_with_options(
                    args=("ada", secret(f"{name}_spool")), on_failure="tell"
                )
            broker.join("default", fail_fast=False)
        text = files_in(tmp_path / "spool")
    finally:
        log.close()
        broker.close()

    assert "[redacted]" in text
    assert [] == leaks(text)


def test_a_sealed_secret_runs_again(log, broker, worker):
    """With a key a job runs again with its secret; without one this is refused."""
    seen = []

    @dramatiq.actor
    def login(user, password):
        seen.append(password)

    with worker(broker):
        sent = login.send("ada", secret("again"))
        broker.join("default")
        if log.core.seal is not None:
            log.requeue(sent.message_id)
            broker.join("default")

    assert [secret("again")] * (1 if log.core.seal is None else 2) == seen


def test_the_same_secret_makes_the_same_key(log, broker, worker, eventually):
    """A key made from a secret excludes jobs with the same secret only."""
    inside, go_on = threading.Event(), threading.Event()
    ran = []

    @dramatiq.actor(exclusive="login:{password}")
    def login(user, password):
        ran.append(user)
        if user == "first":
            inside.set()
            go_on.wait(60)

    with worker(broker):
        login.send("first", secret("a"))
        assert inside.wait(60)
        login.send("second", secret("a"))
        login.send("third", secret("b"))
        # The second is skipped while the first is inside.
        eventually(lambda: log.jobs.skipped().count() == 1)
        go_on.set()
        broker.join("default")

    assert ["first", "third"] == ran
    assert 1 == log.jobs.skipped().count()


def test_a_key_that_the_sender_made(log, broker):
    """A key of one message has a digest in place of a secret among its arguments."""

    @dramatiq.actor
    def login(user, password):
        pass

    for options in ({"exclusive": f"login:{secret('a')}"}, {"exclusive": "login:{password}"}):
        login.send_with_options(args=("ada", secret("a")), **options)
    login.send_with_options(args=("ada", secret("a")), unique=Unique(f"by {secret('a')}"))

    keys = [job.section for job in log.jobs if job.section is not None]
    assert 2 == len(keys)
    assert 1 == len(set(keys))
    assert [] == leaks("\n".join(repr(job.__data__) for job in log.jobs))


def test_characters_that_a_secret_shares_stay_in_a_key(log, broker):
    """A key that only happens to contain the characters of a secret is unchanged."""

    @dramatiq.actor(exclusive="shop:{shop}")
    def sync(shop, pin):
        pass

    sync.send(1234, "1234")

    assert ["shop:1234"] == [job.section for job in log.jobs]


def test_there_are_no_leftovers(tmp_path):
    """The search itself finds a secret in a file and in a text."""
    (tmp_path / "a").write_text(f"x {secret('file')} y")

    assert [secret("file")] == leaks(files_in(Path(tmp_path)))
