"""The promise, tried by SIGKILL between every two steps of a job's path, on real Redis."""

from __future__ import annotations

from dataclasses import dataclass

import dramatiq
import pytest
from dramatiq.brokers.redis import RedisBroker

from dramatiq_joblog import JobNotFound

pytestmark = pytest.mark.process


@dataclass
class Death:
    """A point to die at, and what must be true then and in the end."""

    point: str
    #: States that the row may have while the worker is dead.
    states: set[str]
    #: Whether the broker still has the message while the worker is dead.
    delivered_again: bool
    #: Lines of the job's own record in the end.
    runs: list[str]
    #: Outcomes of failures in the end, but for that of a job which breaks.
    failures: list[str]


#: "end" stands for the job's own outcome.
DEATHS = [
    Death("before_start_commit", {"enqueued"}, True, ["began", "ended"], []),
    Death("after_start_commit", {"started"}, True, ["began", "ended"], ["interrupted"]),
    Death("in_body", {"started"}, True, ["began", "began", "ended"], ["interrupted"]),
    Death(
        "before_end_commit",
        {"started"},
        True,
        ["began", "ended", "began", "ended"],
        ["interrupted"],
    ),
    Death("after_end_commit", {"end"}, True, ["began", "ended"], []),
    Death("before_ack", {"end"}, True, ["began", "ended"], []),
    Death("after_ack", {"end"}, False, ["began", "ended"], []),
]


@pytest.mark.parametrize("actor", ["works", "breaks"])
@pytest.mark.parametrize("death", DEATHS, ids=lambda death: death.point)
def test_sigkill(
    joblog, database_url, redis_url, run_worker_process, eventually, tmp_path, death, actor
):
    """Whatever the point, a job without an outcome is delivered again, and one with is not run."""
    end = "finished" if actor == "works" else "dead"
    own_failure = [] if actor == "works" else ["dead"]
    broker = RedisBroker(url=redis_url, namespace="kill")
    environment = {
        "KILL_AT": death.point,
        "KILL_DATABASE": database_url,
        "KILL_FOLDER": str(tmp_path),
        "KILL_NAMESPACE": "kill",
        "KILL_REDIS": redis_url,
    }
    broker.declare_queue("default")
    message = dramatiq.Message(
        queue_name="default", actor_name=actor, args=(), kwargs={}, options={}
    )
    runs = tmp_path / "runs"

    def state():
        try:
            return str(joblog.get(message.message_id).state)
        except JobNotFound:
            return "enqueued"

    def unacknowledged():
        return any(
            message.message_id.encode() in value
            for key in broker.client.keys("kill:default.msgs")
            for value in broker.client.hvals(key)
        )

    with run_worker_process(
        "kill_worker", env=environment, threads=2, expects_critical="exited unexpectedly"
    ) as first:
        broker.enqueue(message)
        eventually((tmp_path / "killed").exists, timeout=30)
        eventually(lambda: first.process.poll() is not None, timeout=30)
    assert state() in {end if s == "end" else s for s in death.states}
    assert death.delivered_again == unacknowledged()

    with run_worker_process("kill_worker", env=environment, threads=2):
        eventually(lambda: state() == end, timeout=30)
        eventually(lambda: not unacknowledged(), timeout=30)

    job = joblog.get(message.message_id)
    assert end == job.state
    assert death.failures + own_failure == [f.outcome for f in job.failures]
    assert death.runs == runs.read_text().split()
    assert 1 == joblog.jobs.count()
    broker.close()
    broker.client.connection_pool.disconnect()
