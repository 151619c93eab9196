"""Whether a family of jobs is done, and how."""

from __future__ import annotations

import dramatiq

from dramatiq_joblog import Exclusive, State


def test_a_family_by_state(joblog, make_broker, worker, eventually):
    """A job's family is counted by state, which shows whether any of it may still run."""
    broker = make_broker("stub", "last", joblog=joblog)
    broker.fail_fast_default = False

    @dramatiq.actor(max_retries=0)
    def member(name):
        if name == "fails":
            raise ValueError

    waits = dramatiq.actor(
        lambda: None, actor_name="waits", exclusive=Exclusive("key", on_conflict="wait")
    )
    skips = dramatiq.actor(lambda: None, actor_name="skips", exclusive="key")

    @dramatiq.actor
    def begins():
        for name in ("a", "b", "fails"):
            member.send(name)
        waits.send()
        skips.send()

    with worker(broker, worker_threads=2):
        with joblog.lock("key"):
            first = begins.send()
            wanted = {State.WAITING: 1, State.FINISHED: 3, State.DEAD: 1, State.SKIPPED: 1}
            eventually(lambda: joblog.get(first.message_id).family.by_state() == wanted)
            assert joblog.get(first.message_id).family.active().exists()
        eventually(lambda: not joblog.get(first.message_id).family.active().exists())

    ended = {State.FINISHED: 4, State.DEAD: 1, State.SKIPPED: 1}
    assert ended == joblog.get(first.message_id).family.by_state()
    assert "waiting" not in joblog.get(first.message_id).family.by_state()
