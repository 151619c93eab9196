"""Each kind of problem, caused by real workers, and checked in every place that shows it."""

from __future__ import annotations

import functools
import os
import re
import signal

import brokers
import commands
import dramatiq
import pytest
from pages import opened
from proxy import Proxy
from starlette.testclient import TestClient

from dramatiq_joblog import Exclusive, JobLog, JobLogMiddleware
from dramatiq_joblog.schema.fields import InstantField

pytestmark = pytest.mark.process

SECOND, MINUTE, HOUR, DAY = 1_000, 60_000, 3_600_000, 86_400_000
PAGES = (
    *("/", "/jobs", "/types", "/queues", "/dead", "/locks", "/workers", "/actions"),
    *("/alerts", "/compare", "/users/7", "/types/import", "/queues/default"),
)
QUEUES = ("default", "other")


@pytest.fixture
def database_url(sqlite_database):
    """Return the URL of a database: queries are tested on each kind elsewhere."""
    return sqlite_database


@pytest.fixture
def joblog(database_url):
    """Return a log, like in an application that sends and queries."""
    log = JobLog(database_url)
    yield log
    log.close()


@pytest.fixture
def broker(joblog, real_redis, redis_url):
    """Return the sender's broker, on a real Redis."""
    broker = brokers.connect(redis_url, namespace="problem")
    broker.add_middleware(JobLogMiddleware(joblog))
    for queue in QUEUES:
        broker.declare_queue(queue)
    # What is run again is sent by an actor.
    section = {"holds": {"exclusive": Exclusive("erp", on_conflict="wait")}}
    for name in ("imports", "holds", "loses_its_retry"):
        dramatiq.actor(
            lambda: None, actor_name=name, broker=broker, max_retries=0, **section.get(name, {})
        )
    yield broker
    broker.client.config_set("maxmemory", 0)
    brokers.disconnect(broker)


@pytest.fixture
def send(broker, joblog):
    """Return a function that sends jobs to an actor of the worker, and returns their jids."""

    def send(actor, number=1, queue="default", delay=None, **options):
        messages = [
            broker.enqueue(dramatiq.Message(queue, actor, (), {}, options), delay=delay)
            for _ in range(number)
        ]
        joblog.core.writer.flush()
        return [message.message_id for message in messages]

    return send


@pytest.fixture
def run(database_url, redis_url, run_worker_process, tmp_path):
    """Return a function that runs the worker."""
    environment = {
        "PROBLEM_BROKER": redis_url,
        "PROBLEM_DATABASE": database_url,
        "PROBLEM_FOLDER": str(tmp_path),
    }

    def run(module="problem_worker", *, env=None, **options):
        options = {"expects_critical": "exited unexpectedly"} | options
        return run_worker_process(module, env=environment | (env or {}), **options)

    return run


@pytest.fixture
def states(joblog):
    """Return a function that returns the states of some jobs."""
    return lambda jids: {joblog.get(jid).state.value for jid in jids}


def later(joblog, milliseconds):
    """Let time pass: shift all rows into the past, and clear the totals."""
    tables = joblog.core.tables
    for model in (tables.job, tables.failure, tables.line, tables.action):
        fields = [f for f in model._meta.sorted_fields if isinstance(f, InstantField)]
        # No peewee expression: of an instant and a number it would make an instant.
        sets = ", ".join(f"{f.column_name} = {f.column_name} - {milliseconds}" for f in fields)
        joblog.database.execute_sql(f"UPDATE {model._meta.table_name} SET {sets}")
    for model in (tables.total, tables.mark):
        model.delete().execute()
    joblog.release()


def kinds(joblog, **options):
    """Return the problems, by kind."""
    return {problem.kind.value: problem for problem in joblog.problems(**options)}


def seen_everywhere(joblog, url, eventually, *expected):
    """Wait for problems, and check them in every place; return them by kind."""
    found = eventually(lambda: (f := kinds(joblog)).keys() >= {*expected} and f, timeout=30)
    assert {*expected} == found.keys()
    number = len(joblog.problems())
    needs = f"{number} thing{'s' * (number != 1)} need{'s' * (number == 1)} attention"
    with TestClient(opened(joblog), base_url="http://localhost") as page:
        for path in PAGES:
            if (answer := page.get(path)).status_code == 404:
                # Of a type of which nothing has ended yet.
                continue
            text = answer.text
            assert f"<title>{number} need{'s' * (number == 1)} attention · " in text, path
            assert needs in text, path
        health = page.get("/health").json()["problems"]
        metrics = page.get("/metrics").text
    assert {*expected} == {problem["kind"] for problem in health}
    samples = re.findall(r'^joblog_problems\{kind="(\w+)"\} [1-9]', metrics, re.MULTILINE)
    assert {*expected} == {*samples}
    lines = commands.ask(url, "status", code=1).stdout.splitlines()
    assert {*expected} == {line.split("\t")[0] for line in lines}
    for problem in found.values():
        # Of a job that did not run it finds the others of its type.
        if problem.search and problem.kind != "missed":
            assert problem.count <= joblog.search(problem.search).count()
    return found


@pytest.fixture
def everywhere(joblog, database_url, eventually):
    """Return a function that waits for problems of the log, and checks them everywhere."""
    return functools.partial(seen_everywhere, joblog, database_url, eventually)


def kill(running):
    """Kill a worker with all its processes."""
    workers = running.workers
    os.kill(running.pid, signal.SIGKILL)
    for worker in workers:
        worker.kill()
        worker.wait()


@pytest.mark.parametrize("another_lives", [False, True], ids=["alone", "beside another"])
def test_a_worker_is_killed(joblog, run, send, states, eventually, tmp_path, another_lives):
    """The job of a killed worker is lost, whether or not another worker lives to mark it."""
    with run() as running:
        jids = send("runs_on")
        eventually((tmp_path / "began").exists)
        assert {} == kinds(joblog)
        kill(running)

    found = eventually(lambda: kinds(joblog).get("lost"))

    assert jids == [job.jid for job in joblog.search(found.search)]
    if another_lives:
        (tmp_path / "go").touch()
        with run():
            eventually(lambda: states(jids) == {"finished"}, timeout=60)
            assert {} == kinds(joblog)


def test_queues_and_threads(joblog, run, send, states, eventually, tmp_path):
    """A queue without a worker, and busy threads, are detected at once."""
    with run(threads=1, args=["--queues", "default"]):
        first = send("runs_on")
        eventually((tmp_path / "began").exists)
        assert {} == kinds(joblog, patience=0)

        second, other = send("runs_on"), send("elsewhere", queue="other")
        found = eventually(lambda: len(f := kinds(joblog, patience=0)) == 2 and f)

        assert other == [job.jid for job in joblog.search(found["queues"].search)]
        assert "'other'" in found["queues"].text
        assert second == [job.jid for job in joblog.search(found["threads"].search)]
        # So early it is nobody's concern.
        assert {} == kinds(joblog)
        (tmp_path / "go").touch()
        eventually(lambda: states([*first, *second]) == {"finished"})
        assert {"queues"} == set(kinds(joblog, patience=0))


@pytest.mark.full
def test_messages_that_the_broker_lost(
    joblog, broker, run, send, states, eventually, everywhere, ask, tmp_path
):
    """Delayed, retried and waiting jobs whose messages are gone are overdue; their cure works."""
    with run() as running:
        [retried] = send("retries")
        [held] = send("holds")
        eventually((tmp_path / "began").exists)
        [waits] = send("holds")
        [delayed] = send("imports", delay=HOUR)
        eventually(lambda: states([retried, waits]) == {"retrying", "waiting"})
        kill(running)
    # A broker that was restored from nothing.
    broker.client.flushdb()
    (tmp_path / "go").touch()
    with run():
        eventually(lambda: states([held]) == {"lost"}, timeout=30)
        # Dramatiq draws the delay of a retry between one hour and two.
        later(joblog, 3 * HOUR)
        found = everywhere("overdue", "lost")
        overdue = found["overdue"]
        assert 3 == overdue.count
        assert {retried, waits, delayed} == {job.jid for job in joblog.search(overdue.search)}
        ask("doctor", code=1)

        for problem in found.values():
            for job in list(joblog.search(problem.search)):
                joblog.cancel(job.jid, who="ada")
                if job.jid != retried:
                    joblog.requeue(job.jid, broker=broker)
        eventually(lambda: not joblog.jobs.in_state("enqueued", "started", "waiting").count())
        assert {} == kinds(joblog)
        assert ask("doctor").exit_code == 0


@pytest.mark.full
def test_a_retry_that_the_broker_refuses(joblog, broker, run, send, states, eventually, everywhere):
    """A job whose retry does not fit into the broker's memory is dead, with a lost retry."""
    with run(expects_critical="nexpected"):
        jids = send("loses_its_retry")
        eventually(lambda: states(jids) == {"dead"}, timeout=30)
        broker.client.config_set("maxmemory", 0)
        found = everywhere("retries_lost")["retries_lost"]
        assert jids == [job.jid for job in joblog.search(found.search)]

    # Without a worker, which would lose it again.
    joblog.requeue(jids[0], broker=broker)
    assert {} == kinds(joblog)


@pytest.mark.full
def test_errors_that_are_new_and_rise(joblog, run, send, states, eventually, everywhere, tmp_path):
    """An error of a deploy is new; the same error a week later, more often than usual, rises."""
    with run():
        known = send("fails") + send("imports", 3)
        eventually(lambda: states(known) == {"dead", "finished"})
        later(joblog, 3 * HOUR)
        assert {} == kinds(joblog)

        (tmp_path / "broken").touch()
        broken = send("imports", 2)
        eventually(lambda: states(broken) == {"dead"})
        found = everywhere("new_error")["new_error"]
        assert "FeedError is new in imports" in found.text
        assert {*broken} == {job.jid for job in joblog.search(found.search)}

        later(joblog, 3 * DAY)
        assert {} == kinds(joblog)
        more = send("imports", 5)
        eventually(lambda: states(more) == {"dead"})
        found = everywhere("rising_error")["rising_error"]
        assert {*more} <= {job.jid for job in joblog.search(found.search)}


@pytest.mark.full
def test_a_type_that_was_faster_a_week_ago(
    joblog, run, send, states, eventually, everywhere, tmp_path
):
    """A type whose jobs take longer, or fail more often, than a week ago is reported."""
    with run(threads=8):
        usual = send("imports", 20)
        eventually(lambda: states(usual) == {"finished"})
        # A week ago they failed now and then: the error is not new.
        (tmp_path / "broken").touch()
        usual = send("imports", 2)
        eventually(lambda: states(usual) == {"dead"})
        (tmp_path / "broken").unlink()
        later(joblog, 7 * DAY)
        (tmp_path / "slow").touch()
        slow = send("imports", 16)
        eventually(lambda: states(slow) == {"finished"}, timeout=30)
        found = everywhere("slower")["slower"]
        assert "import is slower than a week ago" in found.text
        assert {*slow} == {job.jid for job in joblog.search(found.search)}


@pytest.mark.full
def test_a_type_that_failed_less_a_week_ago(
    joblog, run, send, states, eventually, everywhere, tmp_path
):
    """A type that fails more often than a week ago, with errors neither new nor rising."""
    with run(threads=8):
        usual = send("imports", 180)
        eventually(lambda: states(usual) == {"finished"}, timeout=30)
        (tmp_path / "broken").touch()
        # So many in an hour that what comes now is no more than usual.
        usual = send("imports", 9)
        eventually(lambda: states(usual) == {"dead"})
        later(joblog, 7 * DAY)
        broken = send("imports", 8)
        eventually(lambda: states(broken) == {"dead"})
        (tmp_path / "broken").unlink()
        others = send("imports", 4)
        eventually(lambda: states(others) == {"finished"})
        found = everywhere("failing")["failing"]
        assert "import fails more often than a week ago: 67% of 12 runs instead of 5%" in found.text
        assert {*broken} <= {job.jid for job in joblog.search(found.search)}


@pytest.mark.full
def test_a_section_that_an_ended_job_holds(
    joblog, run, send, states, eventually, everywhere, tmp_path
):
    """A key locked by hand in a job and never released is stuck until it is unlocked."""
    with run():
        [holder] = send("never_lets_go")
        eventually(lambda: states([holder]) == {"finished"})
        [waits] = send("holds")
        eventually(lambda: states([waits]) == {"waiting"})
        found = everywhere("sections")["sections"]
        assert "'erp'" in found.text
        assert [holder] == [job.jid for job in joblog.search(found.search)]

        (tmp_path / "go").touch()
        fence = joblog.locks.get().fence
        joblog.unlock("erp", fence=fence, reason="its job has ended", who="ada")
        assert {} == kinds(joblog)
        eventually(lambda: states([waits]) == {"finished"}, timeout=30)


@pytest.mark.full
def test_a_queue_that_nobody_consumes_any_more(joblog, run, send, eventually, everywhere, tmp_path):
    """Jobs of a queue that lost its workers wait, and so do those behind busy threads."""
    with run(threads=1, args=["--queues", "default"]):
        send("holds")
        eventually((tmp_path / "began").exists)
        [second] = send("imports")
        [other] = send("elsewhere", queue="other")
        assert {} == kinds(joblog)
        later(joblog, 2 * MINUTE)
        found = everywhere("queues", "threads")
        assert [other] == [job.jid for job in joblog.search(found["queues"].search)]
        assert [second] == [job.jid for job in joblog.search(found["threads"].search)]
        (tmp_path / "go").touch()
        eventually(lambda: joblog.get(second).state == "finished")
        everywhere("queues")
    with run():
        eventually(lambda: joblog.get(other).state == "finished", timeout=30)
        assert {} == kinds(joblog)


@pytest.mark.full
def test_a_clock_that_is_wrong(joblog, run, everywhere, eventually, redis_url, database_url):
    """A worker whose host's clock is an hour off is a problem while it is alive."""
    environment = {"SKEWED_BY": str(HOUR), "VICTIM_BROKER": redis_url}
    environment |= {"VICTIM_DATABASE": database_url, "VICTIM_FOLDER": "."}
    with run("skewed_worker", env=environment, fresh=True):
        eventually(lambda: joblog.workers.count() == 1)
        everywhere("clock")


@pytest.mark.full
def test_a_job_that_did_not_run(joblog, run, send, everywhere, eventually):
    """An expected job that did not finish is missed, until one does."""
    with run(env={"PROBLEM_EXPECTS": "nightly"}):
        found = everywhere("missed")["missed"]
        assert "'nightly'" in found.text


@pytest.mark.full
def test_events_that_wait_on_a_disk(
    postgres_database, broker, run_worker_process, redis_url, eventually, tmp_path
):
    """Events that a killed worker left on its disk wait there until a process replays them."""
    proxy = Proxy(postgres_database)
    through = proxy.through(postgres_database)
    asks = JobLog(through)
    environment = {"PROBLEM_BROKER": redis_url, "PROBLEM_DATABASE": through}
    environment |= {"PROBLEM_FOLDER": str(tmp_path)}
    sender = brokers.connect(redis_url, namespace="problem")
    sender.declare_queue("default")
    try:
        with run_worker_process(
            "problem_worker", env=environment, expects_critical="exited unexpectedly"
        ) as running:
            eventually(lambda: asks.workers.count() == 1)
            proxy.refuse()
            sender.enqueue(dramatiq.Message("default", "imports", (), {}, {}))
            eventually(lambda: [f for f in asks.core.spool.files() if f.size], timeout=30)
            kill(running)
        proxy.resume()
        assert "spools" not in kinds(asks)
        for path in [waiting.path for waiting in asks.core.spool.files()]:
            # Its name begins with when it was made.
            made, _, rest = path.name.partition("-")
            path.rename(path.with_name(f"{int(made) - 2 * MINUTE}-{rest}"))
        found = kinds(asks)
        assert str(asks.core.spool.folder) in found["spools"].text
        seen_everywhere(asks, through, eventually, *found)

        (tmp_path / "go").touch()
        with run_worker_process("problem_worker", env=environment):
            eventually(lambda: "spools" not in kinds(asks), timeout=30)
    finally:
        asks.close()
        proxy.close()
        brokers.disconnect(sender)
