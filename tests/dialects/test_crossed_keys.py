"""Several keys per job on each database: processes that name them in different orders."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from peewee import MySQLDatabase

#: Begins and ends jobs with crossed keys, and prints how many came in and how often it failed.
SCRIPT = """
import random, sys, time
import peewee
from dramatiq_joblog import DatabaseAwayError, JobLog
from dramatiq_joblog.database.connection import Connection
from dramatiq_joblog.locking.needs import bound_to, carried
from dramatiq_joblog.locking.options import Exclusive, Rate
from dramatiq_joblog.recording.exclusive import Sections
from dramatiq_joblog.recording.events import GRANTED, Ended, Started
from dramatiq_joblog.recording.tokens import new_token

url, name = sys.argv[1:]
joblog, dice = JobLog(url), random.Random(name)
sections = Sections(joblog.core.transitions)
came_in = failed = 0
# As the writer has one.
connection = Connection(joblog.database)
for number in range(40):
    keys = dice.sample("abcd", 3)
    entries = [carried(Exclusive(key, 2), key, 2) for key in keys[:2]]
    entries.append(carried(Exclusive(keys[2]), keys[2], 1))
    entries.append(carried(Rate("rate", 10_000, per=10), "rate", 10_000))
    dice.shuffle(entries)
    now = int(time.time() * 1000)
    row = dict.fromkeys(("enqueued_at", "started_at", "created_at", "updated_at"), now)
    row |= {"jid": f"{name}-{number}", "actor": "work", "queue": "default", "attempt": 1}
    row |= {"state": "started", "token": new_token(None), "process": None, "worker": "here"}
    start = Started(row, section=bound_to(entries))
    ended = Ended(row | {"state": "finished", "finished_at": now}, section=start.section)
    granted = True
    for event in (start, ended):
        for attempt in range(100):
            try:
                answers = connection.ask(lambda: sections.write([event]))
                granted = granted and answers.get(event.jid, GRANTED).granted
                break
            except (DatabaseAwayError, peewee.PeeweeException) as e:
                # As the writer does; a busy file is no deadlock.
                print(e, file=sys.stderr)
                failed += "database is locked" not in str(e)
                time.sleep(dice.uniform(0.001, 0.01))
        if not granted:
            break
    came_in += granted
print(came_in, failed)
"""


@pytest.mark.full
@pytest.mark.process
def test_four_processes(joblog, database_url, run_python):
    """Four processes that name the same keys in any order never deadlock."""
    with ThreadPoolExecutor(4) as threads:
        answers = [*threads.map(lambda n: run_python("-c", SCRIPT, database_url, n), range(4))]
    assert all(answer.returncode == 0 for answer in answers), answers
    counts = [tuple(map(int, answer.stdout.split())) for answer in answers]
    # MariaDB may end one of two that make a row of a key for the first time; it is written again.
    most = 20 if isinstance(joblog.database, MySQLDatabase) else 0
    assert sum(failed for _, failed in counts) <= most, answers
    assert all(came_in > 0 for came_in, _ in counts)
    lock = joblog.Lock
    assert 0 == lock.select().where(lock.kind == "section", lock.owner.is_null(False)).count()
    # Each start was counted, and no other.
    head = lock.get(lock.kind == "rate", lock.slot == 0)
    assert sum(came_in for came_in, _ in counts) == head.last_fence
