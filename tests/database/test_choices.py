"""Words that type checkers refuse are refused at run time too, with the allowed ones."""

from __future__ import annotations

import dramatiq
import pytest

from dramatiq_joblog import (
    ConfigurationError,
    Exclusive,
    JobLog,
    JobLogError,
    JobLogMiddleware,
    State,
    Unique,
    current_job,
    require_current_job,
)
from dramatiq_joblog.errors import SearchError

WRONG = {
    "acks": (lambda log: JobLogMiddleware(log, acks="plian"), "acks='plian'", "plain"),
    "start": (lambda log: JobLogMiddleware(log, start="sooner"), "start='sooner'", "soon"),
    "on_conflict": (lambda _: Exclusive("k", on_conflict="wiat"), "on_conflict='wiat'", "wait"),
    "on_timeout": (lambda _: Exclusive("k", on_timeout="die"), "on_timeout='die'", "dead"),
    "until": (lambda _: Unique("k", until="begun"), "until='begun'", "started"),
    "on_outage": (
        lambda _: JobLog("sqlite:///x.db", on_outage="wait"),
        "on_outage='wait'",
        "block",
    ),
    "keep": (lambda _: JobLog("sqlite:///x.db", keep={"finishd": 1}), "'finishd'", "finished"),
    "keep of an open state": (
        lambda _: JobLog("sqlite:///x.db", keep={State.STARTED: 1}),
        "'started'",
        "finished",
    ),
    "keep_types": (
        lambda _: JobLog("sqlite:///x.db", keep_types={"a": {"ded": 1}}),
        "'ded'",
        "dead",
    ),
    "prune": (lambda log: log.prune({"ded": 1}, dry_run=True), "'ded'", "dead"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_word_that_is_not_known(tmp_path, name):
    """The error names the given value and the allowed ones."""
    make, given, known = WRONG[name]
    log = JobLog(f"sqlite:///{tmp_path / 'jobs.db'}")

    with pytest.raises(ConfigurationError) as refused:
        make(log)

    assert given in str(refused.value)
    assert known in str(refused.value)


def test_statistics_by_what_is_nothing(tmp_path):
    """An unknown group of statistics is refused too."""
    log = JobLog(f"sqlite:///{tmp_path / 'jobs.db'}")

    with pytest.raises(SearchError, match="by='queue'"):
        log.stats(since=None, by="queue")


def test_the_current_job_outside_of_one():
    """One form returns None outside a job, the other raises one sentence with the cure."""
    assert current_job() is None
    with pytest.raises(JobLogError, match=r"no logged job runs here: .*current_job\(\)"):
        require_current_job()


def test_the_current_job_in_an_actor(sqlite_database, make_broker, worker):
    """In an actor, both return the same job, and its meta is on the row."""
    log = JobLog(sqlite_database)
    broker = make_broker(joblog=log)

    @dramatiq.actor
    def work():
        assert require_current_job() is current_job()
        require_current_job().meta["rows"] = 12

    jid = work.send().message_id
    with worker(broker):
        broker.join("default")

    assert {"rows": 12} == log.get(jid).meta
    log.close()
