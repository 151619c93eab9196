"""What each index costs the writing of a job.

A log is filled, and more jobs are begun and ended in it as a worker's batches are: eight starts
and eight ends a transaction.  That is done with all indexes, and without each of them in turn;
what is saved is the index's price.  The processor's time is that of the database: of the
server's process, or of this one where the database is a library.

    python benchmarks/indexes.py [--filled 1000000] [--jobs 16000] [--rounds 3] [--only postgres]
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests" / "support"), str(HERE)]

import filling  # noqa: E402
import servers  # noqa: E402

from dramatiq_joblog import JobLog  # noqa: E402
from dramatiq_joblog.recording.events import Ended, Started  # noqa: E402

#: Jobs that begin, and end, in one transaction.
BATCH = 8
#: The columns of an event of a job that begins, and the others of one that has ended.
BEGUN = (
    *("jid", "actor", "queue", "job_type", "user_id", "attempt", "max_retries", "enqueued_at"),
    *("started_at", "created_at", "worker", "process", "token", "args", "kwargs"),
)
ENDED = ("duration", "finished_at")


@dataclasses.dataclass
class Price:
    """What a job costs: microseconds of processor time and of the clock, and bytes of WAL.

    SQLite does not report the last.
    """

    cpu: float
    wall: float
    wal: float


class Measured:
    """A full log, and the jobs that are yet to come to it.

    Parameters:
      joblog: The log.
      filled: How many jobs it is filled with.
    """

    def __init__(self, joblog: JobLog, filled: int) -> None:
        self.joblog = joblog
        self.database = joblog.database
        joblog.create_tables()
        self.database.connect(reuse_if_open=True)
        filling.fill(joblog, filled)
        self._is_server = joblog.database.param != "?"
        process = self._ask("SELECT pg_backend_pid()") if self._is_server else None
        self._process = psutil.Process(process)
        # Another seed: these are other jobs, and all of them end well.
        now = int(time.time() * 1000)
        jobs = (dict(zip(filling.COLUMNS, row, strict=True)) for row in self._rows(now))
        self._jobs = (job for job in jobs if job["state"] == "finished")

    @staticmethod
    def _rows(now: int):
        for seed in itertools.count(2):
            yield from filling.rows(100_000, now + 1000 * seed, seed)

    def _ask(self, text: str) -> int:
        return self.database.execute_sql(text).fetchone()[0]

    def indexes(self) -> list[str]:
        """Return the names of the indexes that the job table could do without."""
        found = self.database.get_indexes(self.joblog.Job._meta.table_name)
        return sorted(index.name for index in found if not index.unique)

    def drop(self, index: str) -> None:
        """Do without an index."""
        self.database.execute_sql(f'DROP INDEX "{index}"')

    def restore(self) -> None:
        """Make the indexes that are missing."""
        self.joblog.Job._schema.create_indexes(safe=True)

    def run(self, number: int) -> Price:
        """Begin and end *number* jobs, and return what each cost."""
        batches = list(self._batches(number))
        if self._is_server:
            self.database.execute_sql("CHECKPOINT")
        before = self._spent()
        for batch in batches:
            self.joblog.core.transitions.write(batch)
        after = self._spent()
        return Price(*((b - a) / number for a, b in zip(before, after, strict=True)))

    def _batches(self, number: int):
        ending: list[Ended] = []
        jobs = [next(self._jobs) for _ in range(number)]
        for first in range(0, number, BATCH):
            some = jobs[first : first + BATCH]
            starts = [self._event(Started, job, BEGUN, "started", "started_at") for job in some]
            yield starts + ending
            ending = [
                self._event(Ended, job, BEGUN + ENDED, "finished", "finished_at") for job in some
            ]
        yield ending

    @staticmethod
    def _event(kind, job: dict, columns: tuple[str, ...], state: str, at: str):
        row = {column: job[column] for column in columns}
        return kind(row | {"state": state, "updated_at": job[at]})

    def _spent(self) -> tuple[float, float, float]:
        times = self._process.cpu_times()
        wal = 0
        if self._is_server:
            wal = self._ask("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn")
        return (times.user + times.system) * 1e6, time.monotonic() * 1e6, float(wal)


def prices(log: Measured, jobs: int, rounds: int) -> dict[str, list[Price]]:
    """Return what each index cost in each round, and, as ``all``, a job with all of them."""
    found: dict[str, list[Price]] = {"all": []}
    log.run(jobs)
    for number in range(rounds):
        whole = log.run(jobs)
        found["all"].append(whole)
        for index in log.indexes():
            log.drop(index)
            without = log.run(jobs)
            log.restore()
            # Beside the measurements before and after it, as the table grows.
            after = log.run(jobs)
            each = map(dataclasses.astuple, (whole, after, without))
            saved = Price(*((a + b) / 2 - c for a, b, c in zip(*each, strict=True)))
            whole = after
            found.setdefault(index, []).append(saved)
            print(f"{number + 1}: {index}: {saved}", file=sys.stderr, flush=True)
    return found


def table(found: dict[str, list[Price]]) -> str:
    """Return the medians as a table of Markdown."""
    lines = ["| | CPU, µs a job (least, most) | clock, µs a job | WAL, bytes a job |"]
    lines.append("|---|---|---|---|")
    for name, each in found.items():
        cpu, wall, wal = (
            sorted(getattr(price, field.name) for price in each)
            for field in dataclasses.fields(Price)
        )
        span = f"{statistics.median(cpu):.1f} ({cpu[0]:.1f}, {cpu[-1]:.1f})"
        written = f"{statistics.median(wal):.0f}" if any(wal) else ""
        lines.append(f"| `{name}` | {span} | {statistics.median(wall):.1f} | {written} |")
    return "\n".join(lines)


def main() -> None:
    """Price the indexes of each database and print tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--filled", type=int, default=1_000_000)
    parser.add_argument("--jobs", type=int, default=16_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("sqlite", "postgres"))
    args = parser.parse_args()
    postgres = servers.start_postgres(fsync=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, url in {
            "PostgreSQL": postgres.url,
            "SQLite": f"sqlite:///{folder}/jobs.db",
        }.items():
            if args.only and args.only not in name.lower():
                continue
            joblog = JobLog(url)
            found = prices(Measured(joblog, args.filled), args.jobs, args.rounds)
            print(f"\n{name}, {args.filled} jobs before, {args.rounds} rounds\n\n{table(found)}")
            joblog.close()
    postgres.stop()


if __name__ == "__main__":
    main()
