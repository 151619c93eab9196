"""Whatever a job does to ``logging``: lines are stored, and other handlers work as before."""

from __future__ import annotations

import json
import logging
import logging.config

import dramatiq
import pytest

from dramatiq_joblog import JobContextFilter, JobLog
from dramatiq_joblog.recording.log_handler import Capture


@pytest.fixture
def log(sqlite_database):
    """Return a log."""
    log = JobLog(sqlite_database)
    yield log
    log.close()


@pytest.fixture(autouse=True)
def logging_as_before():
    """Restore the root logger."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.setLevel(logging.INFO)
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for logger in logging.Logger.manager.loggerDict.values():
        if isinstance(logger, logging.Logger):
            logger.disabled = False


def by_force():
    logging.basicConfig(force=True, level="INFO")


def by_dictionary():
    handler = {"class": "logging.StreamHandler"}
    root = {"handlers": ["h"], "level": "INFO"}
    logging.config.dictConfig({"version": 1, "handlers": {"h": handler}, "root": root})


def by_dictionary_alone():
    logging.config.dictConfig({"version": 1, "root": {"level": "INFO", "handlers": []}})


def by_clearing():
    logging.getLogger().handlers.clear()


def by_another_list():
    logging.getLogger().handlers = []


SETUPS = (by_force, by_dictionary, by_dictionary_alone, by_clearing, by_another_list)


def captures():
    return [h for h in logging.getLogger().handlers if isinstance(h, Capture)]


@pytest.mark.parametrize("setup", SETUPS)
def test_lines_of_later_jobs_are_kept(log, make_broker, worker, setup):
    """After a job reconfigures logging, the handler is attached again, until the worker ends."""
    broker = make_broker(joblog=log)
    found = []

    @dramatiq.actor
    def first():
        setup()

    @dramatiq.actor
    def later(number):
        logging.getLogger(f"shop.{setup.__name__}.{number}").info("line %d", number)
        logging.getLogger(f"shop.{setup.__name__}.{number}").debug("too fine")
        found.append(len(captures()))

    with worker(broker, worker_threads=1):
        first.send()
        broker.join("default")
        others = [h for h in logging.getLogger().handlers if not isinstance(h, Capture)]
        for number in range(3):
            later.send(number)
        broker.join("default")
        assert others == [h for h in logging.getLogger().handlers if not isinstance(h, Capture)]

    lines = [line.text for job in log.jobs.of_actor("later") for line in job.lines]
    assert ["line 0", "line 1", "line 2"] == sorted(lines)
    assert [1, 1, 1] == found
    assert [] == captures()


def test_levels_that_a_setup_sets_are_kept(log, make_broker, worker):
    """Levels that the new configuration disables are not stored either."""
    broker = make_broker(joblog=log)

    @dramatiq.actor
    def quiet():
        logging.basicConfig(force=True, level="ERROR")

    @dramatiq.actor
    def later():
        logging.getLogger("shop").info("not said")
        logging.getLogger("shop").error("said")

    with worker(broker, worker_threads=1):
        for actor in (quiet, later):
            actor.send()
            broker.join("default")

    assert ["said"] == [line.text for line in log.jobs.of_actor("later").get().lines]


def test_warnings_reach_stderr_with_two_logs(log, make_broker, worker, tmp_path, capsys):
    """With only the handlers of two logs, warnings go to stderr once, as without a log."""
    other = JobLog(f"sqlite:///{tmp_path / 'other.db'}")
    other.create_tables()
    brokers = [make_broker(joblog=log), make_broker(joblog=other)]

    @dramatiq.actor(broker=brokers[0])
    def work():
        logging.getLogger().handlers[:] = captures()
        logging.getLogger("shop").warning("said once")

    with worker(brokers[0]), worker(brokers[1]):
        work.send()
        brokers[0].join("default")
    other.close()

    assert 1 == capsys.readouterr().err.count("said once")


class Fields(logging.Handler):
    """Formats each record like a JSON formatter: its message and extra attributes."""

    def __init__(self):
        super().__init__()
        self.lines = []
        self.plain = vars(logging.makeLogRecord({})).keys()

    def emit(self, record):
        fields = {name: value for name, value in vars(record).items() if name not in self.plain}
        self.lines.append(json.loads(json.dumps({"message": record.getMessage(), **fields})))


def test_every_line_of_a_job_has_its_context(log, make_broker, worker):
    """A filter puts jid, actor and attempt on each line of a job, and its default on others."""
    broker = make_broker(joblog=log)
    handler = Fields()
    handler.addFilter(JobContextFilter(default="-"))
    logging.getLogger("shop").addHandler(handler)

    @dramatiq.actor(max_retries=1, min_backoff=1, max_backoff=1)
    def work():
        logging.getLogger("shop.deep").warning("inside")
        raise ValueError

    try:
        with worker(broker):
            sent = work.send()
            broker.join("default", fail_fast=False)
        logging.getLogger("shop").warning("outside")
    finally:
        logging.getLogger("shop").removeHandler(handler)

    jid = sent.message_id
    assert [
        {"message": "inside", "jid": jid, "actor": "work", "attempt": 1},
        {"message": "inside", "jid": jid, "actor": "work", "attempt": 2},
        {"message": "outside", "jid": "-", "actor": "-", "attempt": "-"},
    ] == [
        {name: value for name, value in line.items() if name != "taskName"}
        for line in handler.lines
    ]


def test_an_outcome_has_fields(log, make_broker, worker):
    """The columns of a run are fields of its record, whatever a record factory sets."""
    broker = make_broker(joblog=log, outcome_log=True)
    handler, logger = Fields(), logging.getLogger("dramatiq_joblog.outcome")
    handler.addFilter(JobContextFilter())
    factory = logging.getLogRecordFactory()

    def with_a_trace(*args, **kwargs):
        record = factory(*args, **kwargs)
        record.trace_id = record.jid = "of the factory"
        return record

    @dramatiq.actor(max_retries=0, job_type="import")
    def work():
        raise ValueError("row 7 is broken")

    logging.setLogRecordFactory(with_a_trace)
    logger.addHandler(handler)
    try:
        with worker(broker):
            sent = work.send()
            broker.join("default", fail_fast=False)
    finally:
        logger.removeHandler(handler)
        logging.setLogRecordFactory(factory)

    [line] = handler.lines
    jid = sent.message_id
    assert f"Job {jid} of work is dead after attempt 1: row 7 is broken" == line["message"]
    assert (jid, "dead", "import") == (line["jid"], line["state"], line["job_type"])
    assert ("ValueError", "row 7 is broken") == (line["error_type"], line["error_message"])
