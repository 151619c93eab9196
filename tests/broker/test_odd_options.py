"""Options that only another encoder supports, and our options set by other code."""

from __future__ import annotations

import dramatiq
import pytest
from dramatiq import Message
from dramatiq.encoder import PickleEncoder

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


class Undecided:
    """Raises for bool(), == and str(), like some arrays and database objects."""

    __hash__ = None

    def __bool__(self) -> bool:
        raise ValueError("ambiguous")

    def __eq__(self, other) -> bool:
        raise ValueError("ambiguous")

    def __repr__(self) -> str:
        raise ValueError("ambiguous")


class Wordless(str):
    """A str whose methods raise."""

    __slots__ = ()

    def __str__(self) -> str:
        raise ValueError("no text")


@pytest.fixture
def run(joblog, make_broker, worker):
    """Return a function that runs a message enqueued by another producer."""
    before = dramatiq.get_encoder()
    dramatiq.set_encoder(PickleEncoder())
    broker = make_broker("stub", joblog=joblog)
    dramatiq.actor(print, actor_name="work", max_retries=0)

    def to_the_end(**options):
        message = Message("default", "work", (), {}, options, message_timestamp=1_764_000_000_000)
        broker.queues["default"].put(message.encode())
        with worker(broker):
            broker.join("default", fail_fast=False, timeout=20_000)
        joblog.core.writer.flush()
        return joblog.get(message.message_id)

    yield to_the_end
    dramatiq.set_encoder(before)


@pytest.mark.parametrize("name", ["unique", "joblog_unique", "rerun", "job_type", "log_job"])
def test_a_label_that_has_no_truth(run, name):
    """It is ignored, and the job runs and has its row."""
    job = run(**{name: Undecided()})
    assert "finished" == job.state
    assert name in job.note


@pytest.mark.parametrize(
    "name", ["joblog_root", "joblog_parent", "joblog_replay_of", "joblog_note"]
)
def test_a_relative_that_has_no_truth(run, name):
    """A job whose family cannot be read runs, and has its start on its row."""
    job = run(**{name: Undecided()})
    assert "finished" == job.state
    assert job.started_at is not None


@pytest.mark.parametrize("name", ["exclusive", "joblog_section"])
def test_a_section_that_has_no_truth(run, name):
    """It is unknown what it excludes, so its job is dead, with the reason."""
    job = run(**{name: Undecided()})
    assert ("dead", "ConfigurationError") == (job.state, job.error_type)


@pytest.mark.parametrize(
    "name",
    [Undecided(), Wordless("x"), 10**5000, b"\xff"],
    ids=["undecided", "wordless", "huge", "bytes"],
)
def test_a_name_of_a_delivery_that_is_none(run, name):
    """A job whose delivery has no valid ID runs and has its row."""
    assert "finished" == run(redis_message_id=name).state


@pytest.mark.parametrize("name", ["joblog_malformed", "joblog_duplicate"])
@pytest.mark.parametrize(
    "value", ["x", 7, None, Undecided()], ids=["text", "number", "none", "undecided"]
)
def test_a_word_of_ours_that_is_not_from_us(run, name, value):
    """The log's own options have no effect if the log did not write them."""
    job = run(**{name: value})
    assert "finished" == job.state
    assert f"{name}=" in job.note
