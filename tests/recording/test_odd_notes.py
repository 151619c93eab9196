"""An actor's reports, however odd, never cost the outcome."""

from __future__ import annotations

import dramatiq
import pytest

from dramatiq_joblog import current_job


class Rude:
    """Raises in each method."""

    def _raise(self, *args):
        raise RuntimeError("rude")

    __eq__ = __repr__ = __str__ = __bool__ = __len__ = __float__ = __index__ = _raise
    __hash__ = None


class OddError(Exception):
    """Is falsy, equal to nothing, and raises in str()."""

    def __bool__(self):
        return False

    def __eq__(self, other):
        raise RuntimeError("rude")

    def __str__(self):
        raise RuntimeError("rude")

    __repr__ = __str__
    __hash__ = Exception.__hash__


def loop():
    """Return a list that holds itself."""
    held = []
    held.append(held)
    return held


def deep():
    """Return a list that is deeper than Python itself goes."""
    held = []
    for _ in range(100_000):
        held = [held]
    return held


@pytest.mark.few(6)
@pytest.mark.parametrize(
    "value",
    [
        Rude(),
        loop(),
        deep(),
        float("nan"),
        "\ud800\x00",
        {1: {2}},
        b"\xff",
        10**6000,
        {"a": Rude()},
    ],
    ids=["rude", "loop", "deep", "nan", "text", "set", "bytes", "long", "inside"],
)
@pytest.mark.parametrize("fails", [False, True])
def test_an_outcome_is_kept_whatever_is_noted(joblog, make_broker, worker, value, fails):
    """A job has its outcome whatever its meta, its progress, its lines and its error are."""
    broker = make_broker(joblog=joblog)

    @dramatiq.actor(max_retries=0)
    def work():
        job = current_job()
        job.meta["value"] = value
        job.progress(value, value, value)
        job.log(value)
        if fails:
            raise OddError(value) from OddError(value)

    message = work.send()
    with worker(broker):
        broker.join("default", timeout=20_000, fail_fast=False)

    job = joblog.get(message.message_id)
    assert ("dead" if fails else "finished") == job.state
    assert 0 == joblog.core.writer.lost
    assert 1 == len(list(job.lines))
    if fails:
        failure = job.failures.get()
        assert "OddError" == failure.error_type
        assert "raise OddError" in failure.traceback


@pytest.mark.parametrize("meta", [Rude(), 7, [1], "x", None, True])
def test_an_outcome_is_kept_whatever_takes_the_place_of_meta(joblog, make_broker, worker, meta):
    """A job has its outcome if its meta is replaced by anything."""
    broker = make_broker(joblog=joblog)

    @dramatiq.actor(max_retries=0)
    def work():
        current_job().meta = meta

    message = work.send()
    with worker(broker):
        broker.join("default", timeout=20_000, fail_fast=False)

    assert "finished" == joblog.get(message.message_id).state
