"""Background maintenance in a worker: totals are rolled up, old jobs pruned."""

from __future__ import annotations

import time

import dramatiq

from dramatiq_joblog import JobLog

HOUR = 3_600_000


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
