"""How soon an end is heard by those who wait for it, and what it costs the database.

``python benchmarks/waiting.py [--database URL] [--waiting 1000] [--ends 200]``: a process of its
own ends jobs one after the other, and writes down when each was committed; this one has a number
of coroutines that wait, and writes down when each heard of it.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import random
import statistics
import tempfile
import threading
import time
from pathlib import Path

from dramatiq_joblog import JobLog
from dramatiq_joblog.asking import watcher


def end_jobs(url, jids, pipe):
    """End jobs, one each 20 to 60 ms, and send when each was committed."""
    log = JobLog(url)
    committed = {}
    for jid in jids:
        time.sleep(random.uniform(0.02, 0.06))
        log.Job.update(state="finished", finished_at=1).where(log.Job.jid == jid).execute()
        committed[jid] = time.time()
    log.close()
    pipe.send(committed)


def insert(log, number):
    now = int(time.time() * 1000)
    rows = [
        {"jid": f"job-{i}", "actor": "a", "queue": "q", "state": "started", "attempt": 1}
        | {"created_at": now, "updated_at": now}
        for i in range(number)
    ]
    for start in range(0, number, 100):
        log.Job.insert_many(rows[start : start + 100]).execute()
    return [row["jid"] for row in rows]


async def hear(log, jids, ended, begin):
    """Wait for all of *jids*; return when each of *ended* was heard of."""
    heard = {}

    async def wait(jid):
        await log.wait_async(jid)
        heard[jid] = time.time()

    tasks = {jid: asyncio.ensure_future(wait(jid)) for jid in jids}
    await asyncio.sleep(1)
    begin()
    await asyncio.gather(*(tasks[jid] for jid in ended))
    for task in tasks.values():
        task.cancel()
    await asyncio.gather(*tasks.values(), return_exceptions=True)
    return heard


def measure(url, waiting, ends):
    log = JobLog(url)
    log.create_tables()
    log.Job.delete().execute()
    jids = insert(log, waiting)
    ended = random.sample(jids, min(ends, waiting))
    here, there = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=end_jobs, args=(url, ended, there)
    )
    asked, took = 0, 0.0
    read = watcher._Watch._read

    def reading(self, jids, by_jid):
        nonlocal asked, took
        began = time.perf_counter()
        try:
            return read(self, jids, by_jid)
        finally:
            asked, took = asked + 1, took + time.perf_counter() - began

    watcher._Watch._read = reading
    began, cpu = time.monotonic(), time.process_time()
    result = []
    thread = threading.Thread(target=lambda: result.append(here.recv()))
    thread.start()
    heard = asyncio.run(hear(log, jids, ended, process.start))
    seconds, cpu = time.monotonic() - began, time.process_time() - cpu
    thread.join()
    process.join()
    watcher._Watch._read = read
    log.close()
    delays = sorted((heard[jid] - result[0][jid]) * 1000 for jid in ended)
    print(
        f"{log.name}: {waiting} waiting, {len(ended)} ends: "
        f"median {statistics.median(delays):.0f} ms, "
        f"p95 {delays[int(len(delays) * 0.95) - 1]:.0f} ms, worst {delays[-1]:.0f} ms; "
        f"{asked / seconds:.1f} questions a second of {took / asked * 1000:.1f} ms, "
        f"{cpu / seconds:.0%} of a core"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database")
    parser.add_argument("--waiting", type=int, nargs="*", default=[1, 100, 1000])
    parser.add_argument("--ends", type=int, default=200)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        url = options.database or f"sqlite:///{Path(folder) / 'waiting.db'}"
        for waiting in options.waiting:
            measure(url, waiting, options.ends)


if __name__ == "__main__":
    main()
