"""Jobs' log lines are stored with their runs."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading

import dramatiq
import pytest
import tiers
from dramatiq.middleware import AsyncIO, default_middleware
from hypothesis import given, settings
from hypothesis import strategies as st

from dramatiq_joblog import ConfigurationError, JobLog, JobLogMiddleware, current_job
from dramatiq_joblog.recording.log_lines import MAX_LINES, Lines, check_level

shop = logging.getLogger("shop.prices")


#: What differs between databases is tried on each; the rest, that is ours alone, on one.
on_each_database = pytest.mark.parametrize(
    "database_url", ["sqlite", "postgres", "mysql"], indirect=True
)


@pytest.fixture
def database_url(request, database_of):
    """Return the URL of an empty database: SQLite, unless a test requests others."""
    return database_of(getattr(request, "param", "sqlite"))


@pytest.fixture(autouse=True)
def levels():
    """Log all levels, like a worker started with ``-v``."""
    before = logging.root.level
    logging.root.setLevel(logging.DEBUG)
    yield
    logging.root.setLevel(before)


@pytest.fixture
def run(joblog, make_broker, worker):
    """Return a function that runs one job of a function, and returns its row."""

    def run_one(fn, *, send=None, options=None, **middleware):
        stack = [*(m() for m in default_middleware), AsyncIO()]
        broker = make_broker("stub", "last", joblog=joblog, middleware=stack, **middleware)
        actor = dramatiq.actor(fn, actor_name="work", max_retries=0, **(options or {}))
        message = actor.send_with_options(**(send or {}))
        with worker(broker):
            broker.join("default", fail_fast=False)
        return joblog.get(message.message_id)

    return run_one


def texts(lines):
    """Return the texts of lines."""
    return [line.text for line in lines]


def logs_at_each_level():
    for level in ("debug", "info", "warning", "error"):
        getattr(shop, level)("%s of %d", level, 4)
    current_job().log("by hand")


@on_each_database
def test_lines_of_a_job(run):
    """A line has its job, run, level, time, logger and text, in order."""
    job = run(logs_at_each_level)

    assert ["info of 4", "warning of 4", "error of 4", "by hand"] == texts(job.lines)
    first, *_, last = job.lines
    assert ("shop.prices", "INFO", 1, 1) == (first.logger, first.level, first.attempt, first.number)
    assert ("work", "INFO") == (last.logger, last.level)
    assert job.token == first.token
    assert job.started_at <= first.time <= job.finished_at


@pytest.mark.few(3)
@pytest.mark.parametrize(
    ("middleware", "actor", "message", "kept"),
    [
        ({}, {"log_lines": "ERROR"}, {}, "error"),
        ({}, {"log_lines": False}, {}, None),
        ({}, {"log_lines": "ERROR"}, {"log_lines": logging.WARNING}, "warning error"),
        ({"lines": "ERROR"}, {}, {}, "error"),
        ({"lines": False}, {}, {}, None),
        ({"lines": False}, {"log_lines": "ERROR"}, {}, "error"),
        ({}, {"log_lines": True}, {}, "debug info warning error"),
    ],
)
def test_levels(run, middleware, actor, message, kept):
    """A message's level overrides its actor's, and that the middleware's."""
    job = run(logs_at_each_level, options=actor, send=message, **middleware)

    wanted = [] if kept is None else [*(f"{level} of 4" for level in kept.split()), "by hand"]
    assert wanted == texts(job.lines)


@pytest.mark.parametrize("value", ["LOUD", 1.5, "", []])
def test_an_unknown_level(sqlite_url, make_broker, value):
    """An invalid level is refused where it is given, with its name."""
    log = JobLog(sqlite_url)
    with pytest.raises(ConfigurationError, match=r"lines=.* is not a level"):
        JobLogMiddleware(log, lines=value)
    make_broker("stub", "last", joblog=log)
    with pytest.raises(ConfigurationError, match=r"actor 'work' has log_lines=.* is not a level"):
        dramatiq.actor(lambda: None, actor_name="work", log_lines=value)
    work = dramatiq.actor(lambda: None, actor_name="work")
    with pytest.raises(
        ConfigurationError, match=r"of actor 'work' has log_lines=.* is not a level"
    ):
        work.send_with_options(log_lines=value)


def test_each_run_keeps_its_own(joblog, make_broker, worker):
    """Lines of a failed run are found by its failure, and all of them by the job."""
    broker = make_broker("stub", "last", joblog=joblog)

    @dramatiq.actor(max_retries=1, min_backoff=1, max_backoff=1)
    def work():
        shop.info("attempt %d", current_job().attempt)
        raise ValueError("row 7 is broken")

    message = work.send()
    with worker(broker):
        broker.join("default", fail_fast=False)
    job = joblog.get(message.message_id)

    assert ["attempt 1", "attempt 2"] == texts(job.lines)
    assert [["attempt 1"], ["attempt 2"]] == [texts(failure.lines) for failure in job.failures]


def test_jobs_at_the_same_time_do_not_mix(joblog, make_broker, worker):
    """Each line is stored with the job that logs it; other lines are not stored."""
    broker = make_broker("stub", "last", joblog=joblog)
    together = threading.Barrier(4, timeout=60)

    @dramatiq.actor
    def work(n):
        together.wait()
        for i in range(50):
            shop.info("%d %d", n, i)

    messages = [work.send(n) for n in range(4)]
    with worker(broker, worker_threads=4):
        shop.info("of nobody")
        broker.join("default")

    for n, message in enumerate(messages):
        assert [f"{n} {i}" for i in range(50)] == texts(joblog.get(message.message_id).lines)
    assert 200 == joblog.Line.select().count()


async def logs_in_tasks():
    shop.info("in the actor")
    in_thread = asyncio.to_thread(shop.info, "in a thread of its own")
    await asyncio.gather(in_thread, asyncio.to_thread(shop.info, "in a thread of its own"))


def test_an_async_actor(run):
    """Lines of an async actor, and of threads that it hands work to, belong to its job."""
    assert ["in the actor", *["in a thread of its own"] * 2] == texts(run(logs_in_tasks).lines)


def test_a_thread_with_the_context(run):
    """A thread with the job's context logs for it; other threads do not."""

    def work():
        of_the_job, of_nobody = contextvars.copy_context(), contextvars.Context()
        for context, text in ((of_the_job, "of the job"), (of_nobody, "of nobody")):
            thread = threading.Thread(target=context.run, args=(shop.info, text))
            thread.start()
            thread.join()

    assert ["of the job"] == texts(run(work).lines)


def test_a_traceback_and_a_secret(run):
    """``logger.exception`` keeps the traceback; secrets are not kept."""

    def work():
        try:
            int("row 7")
        except ValueError:
            shop.exception("could not read")
        shop.info("url %s", "postgresql://joe:hunter2@db/shop")
        shop.info("password=hunter2 for joe")
        shop.info("%d", "no number")

    logging.raiseExceptions = False
    try:
        first, second, third, fourth = texts(run(work).lines)
    finally:
        logging.raiseExceptions = True
    assert first.startswith("could not read\nTraceback")
    assert first.endswith("ValueError: invalid literal for int() with base 10: 'row 7'")
    assert "url postgresql://joe:[redacted]@db/shop" == second
    assert "password=[redacted] for joe" == third
    assert fourth.startswith("%d % tuple: ")


@on_each_database
def test_text_that_no_database_holds(run):
    """A NUL and a lone surrogate are replaced, and a long line loses its middle."""

    def work():
        shop.info("a\x00b\ud800")
        shop.info("x" * 50_000)

    first, second = texts(run(work).lines)
    assert "a\ufffdb\ufffd" == first
    assert "[... 40000 characters left out ...]" in second


def test_the_host_and_the_log_are_left_out(run):
    """Messages of Dramatiq and the log about a job are not its lines; an actor's loggers are."""

    def work():
        dramatiq.get_logger("dramatiq.jobs").warning("of the job")
        raise ValueError("the host tells of this")

    assert ["of the job"] == texts(run(work, options={"log_lines": True}).lines)


@pytest.mark.full
def test_a_chatty_job(run):
    """Of very many lines, the first and last are kept, and a line says how many are not."""

    def work():
        for n in range(20_000):
            shop.info("line %d", n)

    lines = texts(run(work).lines)
    [gap] = [n for n, text in enumerate(lines) if text.startswith("[...")]
    assert lines[:gap] == [f"line {n}" for n in range(gap)]
    assert lines[gap + 1 :] == [f"line {n}" for n in range(20_000 - len(lines) + gap + 1, 20_000)]
    assert f"[... {20_000 - len(lines) + 1} lines left out ...]" == lines[gap]
    assert sum(map(len, lines)) < MAX_LINES + 100


def write(batch, rows):
    """Write a batch to rows by number, like the tables."""
    if batch is None:
        return
    if batch.forget is not None:
        _, _, first, last = batch.forget
        for number in range(first, last + 1):
            rows.pop(number, None)
    for row in batch.lines:
        rows.setdefault(row["number"], row["text"])


def rows_of(steps, *, signs_of_life):
    """Return the rows of a run: a number is a line of that length, None a heartbeat."""
    lines, rows = Lines("j", "t", 1, str), {}
    for n, step in enumerate(steps):
        if step is not None:
            lines.add(n, "INFO", "shop", f"{n}:".ljust(step, "x"))
        elif signs_of_life:
            batch = lines.take()
            write(batch, rows)
            # Written twice, as after a commit that nobody confirmed.
            write(batch, rows)
            if batch is not None:
                lines.done(batch)
    write(lines.end(), rows)
    return dict(sorted(rows.items()))


@settings(max_examples=tiers.examples(200), deadline=None)
@given(st.lists(st.one_of(st.integers(1, 9_000), st.none()), max_size=60))
def test_what_is_written_bit_by_bit_is_what_is_written_at_once(steps):
    """However often a run's lines are written meanwhile, the result is the same."""
    rows = rows_of(steps, signs_of_life=True)
    assert rows_of(steps, signs_of_life=False) == rows
    kept = [text for text in rows.values() if not text.startswith("[...")]
    sent = [f"{n}:".ljust(step, "x") for n, step in enumerate(steps) if step is not None]
    assert kept == sent or (len(kept) < len(sent) and kept[0] == sent[0] and kept[-1] == sent[-1])
    assert sum(map(len, kept)) <= MAX_LINES


def test_after_its_end(run):
    """Lines that a thread logs for an ended job belong to no job."""
    go_on, threads = threading.Event(), []

    def work():
        context = contextvars.copy_context()

        def log_later():
            go_on.wait(30)
            shop.info("too late")

        threads.append(threading.Thread(target=lambda: context.run(log_later)))
        threads[0].start()

    job = run(work)
    go_on.set()
    threads[0].join()
    assert [] == texts(job.lines)


def test_check_level():
    """Names, numbers, on and off."""
    assert [10, 20, 35, 0, None, None] == [
        check_level(value, "x") for value in ("debug", "INFO", 35, True, False, None)
    ]


def test_those_who_set_up_no_logging(joblog, make_broker, worker, monkeypatch, capsys):
    """Without other handlers, warnings still go to stderr, as in Python."""
    broker = make_broker("stub", "last", joblog=joblog)
    done = []

    @dramatiq.actor
    def work():
        others = [h for h in logging.root.handlers if type(h).__name__ != "Capture"]
        for handler in others:
            logging.root.removeHandler(handler)
        shop.warning("seen")
        shop.info("not seen")
        for handler in others:
            logging.root.addHandler(handler)
        done.append(1)

    work.send()
    with worker(broker):
        broker.join("default")
    assert [1] == done
    err = capsys.readouterr().err
    assert "seen\n" in err
    assert "not seen" not in err
