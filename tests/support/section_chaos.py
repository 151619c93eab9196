r"""Chaos in critical sections: jobs check each other while everything is killed and disconnected.

    python tests/support/section_chaos.py [--database sqlite] [--broker rabbit] [--jobs N] \
        [--kills N] [--pauses N] [--cancels N] [--limits N] [--seed N]

Several worker processes of eight threads, on two hosts if possible; real brokers and databases, few
keys; retries, redeliveries and two copies of one message, rates, several keys, manual locks,
limits set at run time, waiters whose messages are missing.  Two jobs may never be in a section,
except one that was paused for longer than its lease, and has ``lease_lost`` set.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import dramatiq
import fleet
import peewee
from chaos import Chaos
from chaos_check import Findings, read_records

from dramatiq_joblog import JobLogError
from dramatiq_joblog.recording.heartbeat import HOST
from dramatiq_joblog.states import FINAL

KEYS = ("alpha", "beta", "gamma")
#: The ttl of the jobs in section_worker.py, in milliseconds.
TTL = 4_000
ACTORS = ("alone",) * 5 + ("pair",) * 2 + ("both", "limited") * 2
ACTORS += ("impatient", "optional", "strict", "released", "by_hand")
#: Actors whose jobs are retried as often as they are to fail.
RETRIED = ("alone", "pair", "both", "released")
#: The rate: the number of starts, and the window in seconds.
RATE, WINDOW = 5, 0.5


@dataclass
class SectionChaos(Chaos):
    """A chaos run in which every job needs a section."""

    module: str = "section_worker"
    durable: bool = False
    copies: int = 0

    def send(self, number):
        """Send one job, and every tenth twice."""
        fails = self.random.choice([0, 0, 0, 1, 2, 9])
        actor, key = self.random.choice(ACTORS), self.random.choice(KEYS)
        args = (number, key, fails, self.random.choice([0, 1, 5, 20, 100]))
        message = dramatiq.Message("default", actor, args, {}, {})
        self.broker.enqueue(message)
        if number % 10 == 0 and fails == 0:
            self.copies += 1
            self.broker.enqueue(message)

    def pause(self, dice):
        """SIGSTOP a worker process that is in a section, for longer than its lease."""
        worker = self._inside(dice)
        worker.signal(signal.SIGSTOP)
        time.sleep(TTL / 1000 + dice.uniform(0.5, 3.0))
        worker.signal(signal.SIGCONT)

    def cancel(self, dice):
        """Cancel a waiting job, if there is one."""
        with contextlib.suppress(peewee.PeeweeException, JobLogError):
            real = self.joblog.Job.actor != "nobody"
            waiting = [job.jid for job in self.joblog.jobs.waiting().where(real).limit(20)]
            if waiting:
                self.joblog.cancel(dice.choice(waiting), who="chaos")
        self.joblog.release()

    def limit(self, dice):
        """Pause a key for a while, or halve the limit of a rate."""
        key = dice.choice([*KEYS, *(f"{key}-rate" for key in KEYS)])
        number = 0 if key in KEYS else dice.choice([0, 2])
        for each in (number, None):
            while True:
                try:
                    self.joblog.set_limit(key, each, who="chaos")
                except (peewee.PeeweeException, JobLogError):
                    # The database is unavailable for a moment.
                    time.sleep(0.2)
                else:
                    break
            time.sleep(dice.uniform(0.3, 2.0) if each is not None else 0)
        self.joblog.release()

    def absent(self, dice):
        """Add an earlier waiter whose message is missing."""
        row = {"jid": f"absent-{dice.random()}", "actor": "nobody", "queue": "default"}
        instants = dict.fromkeys(("enqueued_at", "created_at", "updated_at", "waiting_since"), 1)
        key = dice.choice(KEYS)
        eta = int(time.time() * 1000) + dice.choice([-60_000, 3_000])
        row |= instants | {"attempt": 1, "state": "waiting", "section": key, "eta": eta}
        with contextlib.suppress(peewee.PeeweeException):
            self.joblog.Job.insert(row).execute()
        self.joblog.release()

    def restart(self, dice):
        """Restart the database."""
        if self.server is not None:
            self.server.restart()
            self.ask_server("SELECT 1")

    def _inside(self, dice):
        """Return a worker that is in a section now."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                lock, worker = self.joblog.Lock, self.joblog.Worker
                held = lock.select(lock.process).where(lock.process.is_null(False))
                rows = worker.select().where(worker.process.in_(held), worker.host == HOST)
                pids = [row.pid for row in rows]
            except peewee.PeeweeException:
                # The database was restarted.
                self.joblog.close()
                continue
            finally:
                self.joblog.release()
            for worker in self.workers:
                with contextlib.suppress(ProcessLookupError):
                    if worker.process.pid in map(os.getpgid, pids):
                        return worker
        return dice.choice(self.workers)


@dataclass
class Stay:
    """One stay in a section, as recorded by the job."""

    key: str
    fence: int
    began: float
    jid: str
    ended: float | None = None
    lost: bool = False
    #: When it found one job too many inside, on entering; None if it did not.
    crowded: float | None = None
    #: For a job with a rate: its start is between these two instants.
    start: float | None = None
    body: float | None = None


def stays(folder: Path) -> list[Stay]:
    """Return the recorded stays of all jobs."""
    told, seconds = read_records(folder)
    crowded = {fact["run"]: fact["at"] for fact in seconds}
    found = []
    for runs in told.values():
        for run in runs:
            facts, ended = run.began, run.ended or {}
            stay = Stay(facts["key"], facts["fence"], facts["at"], facts["jid"])
            stay.crowded = crowded.get(facts["run"])
            stay.start, stay.body = facts.get("start"), facts.get("body")
            stay.ended, stay.lost = ended.get("at"), ended.get("lost", False)
            found.append(stay)
    return sorted(found, key=lambda stay: (stay.key, stay.fence))


def check(chaos: SectionChaos, jobs: int) -> Findings:
    """Check the jobs' records against the guarantees."""
    found = Findings()
    everybody = stays(chaos.folder)
    inside = [stay for stay in everybody if not stay.key.endswith("-rate")]
    check_rates(found, [stay for stay in everybody if stay.start is not None])
    _check_fences(found, inside)
    check_beside(found, inside)
    _check_rows(found, chaos, jobs)
    return found


def check_beside(found: Findings, inside: list[Stay]) -> None:
    """Find jobs that met one too many inside, if none of them lost its lease."""
    for stay in inside:
        if stay.crowded is None:
            continue
        # A job that entered later, while this one was paused, is not the one it met.
        met = [
            other
            for other in inside
            if other.key == stay.key and other is not stay and _meet(stay, other, stay.crowded)
        ]
        # A killed job's last steps are unknown; the kernel unlocked its file.
        crowd = [each for each in (*met, stay) if not each.lost and each.ended]
        if _most_at_once(crowd) > (2 if stay.key.endswith("-2") else 1):
            found.add("side by side", f"{stay} and {met}")


def check_rates(found: Findings, starts: list[Stay]) -> None:
    """Find windows in which more jobs have certainly started than the rate allows.

    A start is only known to be between the instants of its row and of its body.
    """
    for first in starts:
        until = first.start + WINDOW - 0.005
        within = [s for s in starts if s.key == first.key and s.start >= first.start]
        within = [s for s in within if s.body < until]
        if len(within) > RATE:
            found.add("too many starts", f"{len(within)} of {first.key} from {first.start} on")


def _check_fences(found: Findings, inside: list[Stay]) -> None:
    for (key, fence), times in Counter((stay.key, stay.fence) for stay in inside).items():
        if times > 1:
            found.add("fence twice", f"{key} {fence}")
    for first, second in itertools.pairwise(inside):
        alone = first.key == second.key and not first.key.endswith("-2")
        # A job that is paused between its start and its body has lost its lease.
        if alone and second.began < first.began and not first.lost:
            found.add("fences out of order", f"{first} {second}")


def _check_rows(found: Findings, chaos: SectionChaos, jobs: int) -> None:
    rows = list(chaos.joblog.jobs.where(chaos.joblog.Job.actor != "nobody"))
    if len(rows) != jobs:
        found.add("number of rows", f"{len(rows)} instead of {jobs}")
    for job in rows:
        for text in _wrong(job):
            found.add("state", text)
    lock = chaos.joblog.Lock
    of_jobs = lock.kind.in_(["section", "wait"])
    for held in lock.select().where(of_jobs, lock.owner.is_null(False)):
        found.add("stuck section", f"{held.key} by {held.owner}")


def _most_at_once(crowd: list[Stay]) -> int:
    """Return the largest number of *crowd* that were inside at one instant."""
    return max(
        (sum(s.began <= stay.began < s.ended for s in crowd) for stay in crowd),
        default=0,
    )


def _meet(stay: Stay, other: Stay, until: float) -> bool:
    """Return whether another was inside between the beginning of a stay and an instant."""
    ended = other.ended if other.ended is not None else other.began
    return other.began <= until and stay.began <= ended


def _wrong(job):
    """Yield the faults of a job's row."""
    if job.dead_reason == "cancelled":
        return
    fails = job.args[2] if job.actor in RETRIED else 0
    state = "finished" if fails < 4 else "dead"
    if job.state == "skipped" and job.actor == "optional":
        if not re.search("is held by|is free by now|is reserved for|is paused", job.skip_reason):
            yield f"{job.jid} was skipped without a word: {job.skip_reason}"
    elif job.state != state and (job.actor, job.dead_reason) != ("strict", "conflict"):
        yield f"{job.jid}, {job.actor}: {job.state} ({job.dead_reason}) instead of {state}"
    if job.actor in RETRIED and job.attempt != min(fails, 3) + 1:
        yield f"{job.jid}, {job.actor}: {job.attempt} attempts, {fails} failures were told"
    if job.waiting_since is not None or job.state not in FINAL:
        yield f"{job.jid} still waits"


def run(
    folder: Path,
    database: str,
    jobs: int,
    faults: dict[str, int],
    seed: int,
    kind: str = "redis",
    processes: int = 4,
):
    """Run it; return the findings and the table."""
    hosts = fleet.why_not() is None
    with SectionChaos(folder, database, seed, processes=processes, kind=kind, hosts=hosts) as chaos:
        chaos.run(jobs, faults)
        chaos.drain(jobs)
        chaos.joblog.close()
        found = check(chaos, jobs)
        failure = chaos.joblog.Failure
        outcomes = Counter(row.outcome for row in failure.select(failure.outcome))
        inside = stays(folder)
    numbers = {"jobs": jobs, "copies": chaos.copies, "hosts": 1 + hosts} | dict(chaos.faults)
    numbers |= {f"runs {name}": number for name, number in sorted(outcomes.items())}
    numbers |= {"stays in a section": len(inside), "leases lost": sum(s.lost for s in inside)}
    return found, numbers


def main() -> int:
    """Run it, and return 0 if no section had one job too many."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = ["mariadb", "postgresql", "sqlite"]
    parser.add_argument("--database", choices=kinds, default="postgresql")
    parser.add_argument("--broker", choices=["rabbit", "redis"], default="redis")
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--pauses", type=int, default=5)
    parser.add_argument("--cancels", type=int, default=10)
    parser.add_argument("--limits", type=int, default=5)
    parser.add_argument("--absent", type=int, default=5)
    parser.add_argument("--outages", type=int, default=2)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    args = parser.parse_args()
    print(f"seed {args.seed}")
    faults = {
        "absent": args.absent,
        "cancel": args.cancels,
        "limit": args.limits,
        "kill": args.kills,
        "pause": args.pauses,
        "outage": args.outages,
        "restart": args.outages,
    }
    folder = Path(tempfile.mkdtemp(prefix="joblog-sections-"))
    began = time.monotonic()
    found, numbers = run(folder, args.database, args.jobs, faults, args.seed, args.broker)
    print(f"{args.database}, {args.broker}, {time.monotonic() - began:.0f} s, in {folder}")
    for name, number in (numbers | {"wrong": found.count}).items():
        print(f"  {name:20}{number:>8}")
    for kind, texts in found.wrong.items():
        print(f"{kind}: {len(texts)}")
        for text in texts[:5]:
            print(f"  {text}")
    return 1 if found.count else 0


if __name__ == "__main__":
    sys.exit(main())
