"""Compares a log with the jobs' own records, run by run."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

#: The maximum number of attempts of a chaos job.
ATTEMPTS = 4


@dataclass
class Findings:
    """What is wrong, by kind."""

    wrong: dict[str, list[str]] = field(default_factory=dict)
    #: Runs that the jobs recorded.
    runs: int = 0
    #: Jobs whose retry could not be enqueued, according to the log.
    gone: int = 0

    def add(self, kind, text):
        self.wrong.setdefault(kind, []).append(text)

    @property
    def count(self):
        return sum(map(len, self.wrong.values()))


@dataclass
class Told:
    """A run as its job recorded it."""

    began: dict
    #: How it ended, and when; None if it was killed.
    ended: dict | None = None

    @property
    def what(self):
        return self.ended["what"] if self.ended else "killed"

    @property
    def place(self):
        return self.began["attempt"], self.began["worker"]


def read_records(folder: Path):
    """Return the runs of each job in order of time, and those that met another in a section."""
    runs: dict[int, Told] = {}
    seconds = []
    for path in (folder / "records").iterdir():
        for line in path.read_text().splitlines():
            fact = json.loads(line)
            if fact["what"] == "began":
                runs[fact["run"]] = Told(fact)
            elif fact["what"] == "second":
                seconds.append(fact)
            else:
                runs[fact["run"]].ended = fact
    told: dict[str, list[Told]] = {}
    for run in sorted(runs.values(), key=lambda run: run.began["at"]):
        told.setdefault(run.began["jid"], []).append(run)
    return told, seconds


def check(joblog, folder: Path, jobs: int) -> Findings:
    """Compare each row with its job's record, and check for leftovers."""
    found = Findings()
    told, seconds = read_records(folder)
    found.runs = sum(map(len, told.values()))
    rows = {job.jid: job for job in joblog.Job.select()}
    found.gone = sum(jid in told and is_gone(job, told[jid]) for jid, job in rows.items())
    failures: dict[str, list] = {}
    for failure in joblog.Failure.select().order_by(joblog.Failure.id):
        failures.setdefault(failure.jid, []).append(failure)
    if len(rows) != jobs:
        found.add("number of rows", f"{len(rows)} instead of {jobs}")
    for jid in told.keys() | rows.keys():
        if jid not in rows or jid not in told:
            found.add("missing", f"{jid}: in the log {jid in rows}, in the record {jid in told}")
            continue
        for kind, text in check_job(rows[jid], failures.get(jid, []), told[jid]):
            found.add(kind, f"{jid}: {text}")
    for text in check_sections(told, seconds):
        found.add("side by side", text)
    for lock in joblog.Lock.select().where(
        joblog.Lock.kind == "section", joblog.Lock.owner.is_null(False)
    ):
        found.add("stuck section", f"{lock.key} by {lock.owner}")
    for path in (folder / "spool").glob("*"):
        found.add("spool left", path.name)
    return found


def check_job(job, failures, told):
    """Yield what differs between a row with its failures and a job's own record of its runs."""
    if job.finished_at is None:
        yield "not ended", f"{job.state}, attempt {job.attempt}, {[r.what for r in told]}"
        return
    yield from check_end(job, told)
    failed = Counter(run.place for run in told if run.what == "failed")
    began = Counter(run.place for run in told)
    kept = Counter(place(f) for f in failures if f.outcome in ("retried", "dead"))
    interrupted = Counter(place(f) for f in failures if f.outcome == "interrupted")
    if kept - failed:
        yield "failure of nobody", f"{kept - failed}"
    known = {"retried", "dead", "interrupted", "waited", "finished"}
    for outcome in {f.outcome for f in failures} - known:
        yield "outcome", outcome
    # A worker that died after it had sent a retry, and before it acknowledged, has sent another:
    # both run, and the first to finish is kept.
    before = Counter(place(f) for f in failures if f.outcome == "finished")
    finished = Counter(run.place for run in told if run.what == "finished")
    if before - (finished - Counter([(job.attempt, job.worker)])):
        yield "finish of nobody", f"{before} of {finished}"
    # A run that was killed, or ended too late, is recorded as interrupted.
    covered = kept + interrupted + before + Counter([(job.attempt, job.worker)])
    lost = began - covered
    lost -= _unnamed(lost, interrupted)
    if job.state == "finished":
        # A second end of a finished job changes nothing, and is no failure.
        lost -= Counter(run.place for run in told if run.what == "finished")
    if lost:
        yield "run lost", f"{lost} of {began}, kept are {kept} and {interrupted}"
    if (job.interruptions or 0) != sum(interrupted.values()):
        yield "interruptions", f"{job.interruptions} of {interrupted}"
    yield from check_times(job, told)


def check_end(job, told):
    """Yield how the end of a job differs from its program."""
    fails = job.args[1]
    expected = ("finished", fails + 1, None)
    if fails >= ATTEMPTS:
        expected = ("dead", ATTEMPTS, "retries_exhausted")
    if is_gone(job, told):
        expected = ("dead", job.attempt, "retry_lost")
    if (job.state, job.attempt, job.dead_reason) != expected:
        yield (
            "state",
            f"{job.state} {job.dead_reason} after {job.attempt}, and should be {expected}",
        )
    if job.error_type != (None if job.state == "finished" else "ValueError"):
        yield "error", f"{job.error_type}"


def is_gone(job, told):
    """Return whether the retry of a failed run could not be enqueued, which loses the message.

    It is so if the job is dead for that reason, and never ran again.
    """
    last = max(told, key=lambda run: (run.began["attempt"], run.began["at"]))
    return (
        job.dead_reason == "retry_lost"
        and last.what == "failed"
        and last.began["attempt"] == job.attempt
    )


def place(failure):
    return failure.attempt, failure.worker


def _unnamed(lost, interrupted):
    """Return which of the lost runs were interrupted before the log knew their threads."""
    found = Counter()
    for (attempt, worker), number in interrupted.items():
        process, _, thread = (worker or "").rpartition(":")
        same = [p for p in lost if p[0] == attempt and p[1].rpartition(":")[0] == process]
        if thread == "0":
            found += Counter(same[:number])
    return found


def check_times(job, told):
    """Yield the times of the last run that differ from the job's own."""
    last = [run for run in told if run.place == (job.attempt, job.worker) and run.ended]
    if not last:
        yield "end of nobody", f"attempt {job.attempt} on {job.worker} never ended"
        return
    started, finished = job.started_at.timestamp(), job.finished_at.timestamp()
    # Milliseconds are truncated, not rounded.
    if not any(started <= run.began["at"] and run.ended["at"] <= finished + 0.001 for run in last):
        yield "times", f"{started} to {finished} is none of {[r.began['at'] for r in last]}"


def check_sections(told, seconds):
    """Yield pairs in one section at the same time, if neither lost its lease."""
    runs = [run for list_ in told.values() for run in list_ if "fence" in run.began]
    ended = {}
    for run in runs:
        ended.setdefault(run.began["key"], []).append(run)
    for second in seconds:
        for run in ended[second["key"]]:
            if run.began["run"] == second["run"] or run.ended is None:
                continue
            inside = run.began["at"] <= second["at"] <= run.ended["at"]
            other = next(r for r in ended[second["key"]] if r.began["run"] == second["run"])
            one_is_told = run.ended["lost"] or (other.ended or {}).get("lost", True)
            if inside and not one_is_told:
                yield f"{run.began} and {second}"
    fences = Counter((run.began["key"], run.began["fence"]) for run in runs)
    for (key, fence), times in fences.items():
        if times > 1:
            yield f"fence {fence} of {key} was given {times} times"
