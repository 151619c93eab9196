"""The guarantees under SIGKILL between every two steps of a job's path, on each broker."""

from __future__ import annotations

from dataclasses import dataclass

import brokers
import dramatiq
import pytest

from dramatiq_joblog import JobNotFound

BROKERS = ["redis", "rabbit"]
DATABASES = ["sqlite", "postgres", "mysql"]

pytestmark = pytest.mark.process


@dataclass
class Death:
    """A point to die at, with the expected states then and at the end."""

    point: str
    #: States that the row may have while the worker is dead.
    states: set[str]
    #: Whether the broker still has the message while the worker is dead.
    delivered_again: bool
    #: Lines of the job's own record in the end.
    runs: list[str]
    #: Outcomes of failures in the end, but for that of a job which breaks.
    failures: list[str]
    #: The ways to acknowledge that have this point.
    ways: tuple[str, ...] = ("plain", "handed")


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
    Death("before_ack", {"end"}, True, ["began", "ended"], [], ("plain",)),
    Death("after_ack", {"end"}, False, ["began", "ended"], [], ("plain",)),
    Death("before_pipeline", {"end"}, True, ["began", "ended"], [], ("handed",)),
    Death("after_pipeline", {"end"}, False, ["began", "ended"], [], ("handed",)),
]

ACTORS = ["works", "breaks"]
#: Each point with each actor on each broker, and with each database on some of them; a rejection
#: is never handed over.
COMBINATIONS = [
    (death, way, actor, broker, DATABASES[(i + j + k) % len(DATABASES)])
    for i, death in enumerate(DEATHS)
    for j, actor in enumerate(ACTORS)
    for k, (way, broker) in enumerate([*(("plain", b) for b in BROKERS), ("handed", "redis")])
    if way in death.ways and (actor == "works" or "pipeline" not in death.point)
]


def parameters():
    """Return the combinations; the first tier has each distinct one once."""
    shown = set()
    for combination in COMBINATIONS:
        death, way, actor, broker, database = combination
        # On what packages bring.  How to acknowledge makes a difference once the end is committed.
        brought = broker == "redis" and database != "mysql"
        matters = way == "plain" or "end" in death.states
        first = brought and matters and (death.point, way) not in shown
        if first:
            shown.add((death.point, way))
        yield pytest.param(
            *combination,
            id=f"{way}-{death.point}-{actor}-{broker}-{database}",
            marks=[pytest.mark.every_database] if first else [pytest.mark.full],
        )


@pytest.mark.parametrize(
    ("death", "way", "actor", "broker_url", "database_url"),
    list(parameters()),
    indirect=["broker_url", "database_url"],
)
def test_sigkill(
    joblog, database_url, broker_url, run_worker_process, eventually, tmp_path, death, way, actor
):
    """At each point, a job without an outcome is redelivered and runs; one with it does not."""
    end = "finished" if actor == "works" else "dead"
    own_failure = [] if actor == "works" else ["dead"]
    broker = brokers.connect(broker_url, namespace="kill")
    environment = {
        "KILL_ACKS": way,
        "KILL_AT": death.point,
        "KILL_BROKER": broker_url,
        "KILL_DATABASE": database_url,
        "KILL_FOLDER": str(tmp_path),
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

    with run_worker_process(
        "kill_worker", env=environment, threads=2, expects_critical="exited unexpectedly"
    ) as first:
        broker.enqueue(message)
        eventually((tmp_path / "killed").exists, timeout=30)
        eventually(lambda: first.process.poll() is not None, timeout=30)
    assert state() in {end if s == "end" else s for s in death.states}
    if death.point != "after_ack" or broker_url.startswith("redis"):
        # To RabbitMQ another thread sends the acknowledgement, soon after this hook.
        eventually(lambda: brokers.holds(broker, message) == death.delivered_again)

    with run_worker_process("kill_worker", env=environment, threads=2):
        eventually(lambda: state() == end, timeout=30)
    assert not brokers.holds(broker, message)

    job = joblog.get(message.message_id)
    assert end == job.state
    assert death.failures + own_failure == [f.outcome for f in job.failures]
    assert death.runs == runs.read_text().split()
    assert 1 == joblog.jobs.count()
    brokers.disconnect(broker)
