"""Names that are too long, or cannot be stored, are distinguished, found and run again."""

from __future__ import annotations

import dramatiq
import pytest

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

LONG = "a" * 300
PAIRS = [(f"{LONG}1", f"{LONG}2"), ("nul\x00", "nul"), ("sur\ud800", "sur")]


@pytest.mark.parametrize("names", PAIRS, ids=["long", "nul", "surrogate"])
def test_actors_and_types(joblog, make_broker, worker, names):
    """Two actors and two job types stay distinct in queries; a job can run again by its name."""
    broker = make_broker("stub", joblog=joblog)
    ran = []

    def run(name):
        ran.append(name)

    sent = [
        dramatiq.actor(run, actor_name=name, job_type=name, max_retries=0).send(name)
        for name in names
    ]
    with worker(broker):
        broker.join("default", fail_fast=False, timeout=20_000)
        for name, message in zip(names, sent, strict=True):
            assert [message.message_id] == [job.jid for job in joblog.jobs.of_actor(name)]
            assert [message.message_id] == [job.jid for job in joblog.jobs.of_type(name)]
            assert joblog.get(message.message_id).actor[:3] == name[:3]
        ran.clear()
        if "sur" not in names:
            for message in sent:
                joblog.requeue(message.message_id)
            broker.join("default", fail_fast=False, timeout=20_000)
            assert sorted(names) == sorted(ran)


class LongFailureError(Exception):
    """Has a name as generated code may have."""


LongFailureError.__name__ = f"{LONG}Error"


def test_queues_and_errors(joblog, make_broker, worker):
    """A queue and an error are found by their complete name."""
    broker = make_broker("stub", joblog=joblog)

    @dramatiq.actor(queue_name=LONG, max_retries=0)
    def work():
        raise LongFailureError

    message = work.send()
    with worker(broker):
        broker.join(LONG, fail_fast=False, timeout=20_000)
    assert [message.message_id] == [job.jid for job in joblog.jobs.in_queue(LONG)]
    job = joblog.Job
    assert 1 == joblog.jobs.where(job.error_type == LongFailureError.__name__).count()
    assert LONG == joblog.requeue(message.message_id).queue_name
