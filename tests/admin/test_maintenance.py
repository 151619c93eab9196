"""Background maintenance in a worker: totals are rolled up, old jobs pruned."""

from __future__ import annotations

import itertools
import time

import dramatiq
import pytest

from dramatiq_joblog import JobLog

MINUTE, HOUR = 60_000, 3_600_000


@pytest.mark.full
def test_a_worker_counts_and_prunes_by_itself(make_broker, worker, database_url, eventually):
    """A worker updates the totals and deletes old jobs automatically."""
    log = JobLog(database_url, keep={"finished": HOUR})
    log.create_tables()
    rows = [
        {
            "jid": str(number),
            "actor": "a",
            "queue": "q",
            "state": "finished",
            "attempt": 1,
            "created_at": 0,
            "updated_at": 0,
            "finished_at": int(time.time() * 1000) - 3 * HOUR + number,
        }
        for number in range(600)
    ]
    with log.database.connection_context():
        for start in range(0, len(rows), 300):
            log.Job.insert_many(rows[start : start + 300]).execute()
    broker = make_broker(joblog=log)

    @dramatiq.actor
    def work():
        pass

    with worker(broker):
        work.send()
        eventually(lambda: log.jobs.count() == 1, timeout=60)
        eventually(lambda: not log.Lock.select().where(log.Lock.owner.is_null(False)).exists())
    total = log.core.tables.total
    assert 600 == sum(
        row.count
        # The worker's own job may be counted by now.
        for row in total.select().where(total.span == HOUR, total.gone == 0, total.actor == "a")
    )
    log.close()


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_long_round(monkeypatch, database_url, by_hand):
    """While many old jobs are deleted, the totals are updated with each minute that is over."""
    log = JobLog(database_url, keep={"finished": HOUR})
    log.create_tables()
    began = int(time.time() * 1000)
    facts = {"actor": "a", "queue": "q", "attempt": 1, "created_at": 0, "updated_at": 0}
    with log.database.connection_context():
        for number in range(4):
            ended = {"state": "finished", "finished_at": began - 3 * HOUR}
            log.Job.insert(jid=str(number), **facts, **ended).execute()
    # A batch takes a minute.
    minutes = itertools.count(began, MINUTE)
    module = "dramatiq_joblog.admin.maintenance"
    monkeypatch.setattr(f"{module}.host_now", lambda: next(minutes))
    monkeypatch.setattr(f"{module}._PART", 0.0)
    monkeypatch.setattr(f"{module}._BATCH", 1)
    chores = log.core.chores
    if by_hand:
        assert {"finished": 4} == chores.prune(chores.retention, 1)
    else:
        chores._round()
    with log.database.connection_context():
        assert not log.jobs.exists()
        assert chores.totals.counted() >= began + 3 * MINUTE
    log.close()
