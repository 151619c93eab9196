"""What the log says in the end, and whether it agrees with what the jobs say themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.box import ROUNDED
from rich.table import Table
from rich.text import Text

from dramatiq_joblog import State

from .data import Run, User, database
from .jobs import FINANCIAL, RULE, JobType, joblog

if TYPE_CHECKING:
    from rich.console import Console

    from dramatiq_joblog.schema.query import JobQuery

STYLES = {State.FINISHED: "green", State.DEAD: "red", State.SKIPPED: "yellow"}

#: The log's state for the outcome of a job's last run, as the job recorded it.
ENDS = {"finished": State.FINISHED, "skipped": State.SKIPPED}


def show(console: Console, jobs: JobQuery) -> None:
    """Print *jobs* by type and state, and the dead with their errors."""
    console.print()
    console.print(_by_type(jobs))
    console.print()
    console.print(_dead(jobs))


def _table(title: str) -> Table:
    return Table(
        title=title, title_justify="left", title_style="bold", box=ROUNDED, border_style="dim"
    )


def _by_type(jobs: JobQuery) -> Table:
    table = _table("Jobs by type and state")
    table.add_column("job type", no_wrap=True)
    for state, style in STYLES.items():
        table.add_column(state.value, justify="right", style=style)
    for heading in ("failed runs", "median ms"):
        table.add_column(heading, justify="right")
    failure, job = joblog.Failure, joblog.Job
    for kind in JobType:
        mine = jobs.of_type(kind)
        counts = [mine.in_state(state).count() or "" for state in STYLES]
        failed = failure.select().where(
            failure.jid.in_(mine.select(job.jid).order_by()),
            failure.outcome.not_in(["skipped", "waited"]),
        )
        took = sorted(j.duration for j in mine if j.duration is not None)
        median = took[len(took) // 2] if took else ""
        table.add_row(kind.value, *map(str, [*counts, failed.count() or "", median]))
    return table


def _dead(jobs: JobQuery) -> Table:
    table = _table("The dead")
    table.add_column("job", no_wrap=True)
    table.add_column("reason", no_wrap=True)
    table.add_column("error")
    with database.connection_context():
        names: dict[object, str] = {user.id: user.name for user in User.select()}
    for job in jobs.dead().order_by(joblog.Job.job_type, joblog.Job.id):
        error = Text(job.error_type or "", style="red")
        if job.error_message:
            error.append(f"\n{job.error_message}", style="default")
        user = Text(f"{job.job_type}\n").append(f"of {names.get(job.user_id)}", style="dim")
        attempt = f"run {job.attempt} of {(job.max_retries or 0) + 1}"
        reason = Text(f"{job.dead_reason}\n").append(attempt, style="dim")
        table.add_row(user, reason, error)
    return table


def show_conflicts(console: Console, jobs: JobQuery) -> bool:
    """Print how the finance rule worked; return whether it held."""
    failure = joblog.Failure
    with database.connection_context():
        stepped = Run.select().where(Run.outcome == "stepped aside")
        number, times = len({run.jid for run in stepped}), stepped.count()
        overlaps = find_overlaps(list(Run.select().where(Run.finance).order_by(Run.began)))
    asked = jobs.of_type(*FINANCIAL).count()
    console.print()
    console.print(Text("One finance job of a user at a time", style="bold"))
    if RULE == "query":
        console.print(
            f"{number} of {asked} found another one of their user in progress and stepped aside,\n"
            f"{times} times in all."
        )
    else:
        waits = failure.select().where(
            failure.outcome == "waited", failure.jid.in_(jobs.select(joblog.Job.jid).order_by())
        )
        longest = max((wait.duration or 0 for wait in waits), default=0)
        console.print(
            f"{len({wait.jid for wait in waits})} of {asked} found another one of their user in "
            f"the section and waited,\nat most {longest / 1000:.1f} seconds."
        )
    if overlaps:
        console.print(Text(f"{len(overlaps)} pairs ran side by side: {overlaps}", style="red"))
    else:
        console.print(
            Text.assemble(("✓ ", "green"), "By their own record no two ran side by side.")
        )
    return not overlaps


def find_overlaps(runs: list[Any]) -> list[tuple[str, str]]:
    """Return the pairs of jids of one user of which the second began before the first ended.

    A time limit may strike while a run writes its end down: nothing can be said of when that was.
    """
    last: dict[int, Any] = {}
    overlaps = []
    for run in runs:
        before = last.get(run.user_id)
        if before is not None and run.began < before.ended:
            overlaps.append((before.jid, run.jid))
        if run.ended is not None and (before is None or run.ended > before.ended):
            last[run.user_id] = run
    return overlaps


def differences(jobs: JobQuery) -> list[str]:
    """Hold *jobs* of the log against the jobs' own record; return a sentence for each difference."""
    with database.connection_context():
        told: dict[str, list[Any]] = {}
        for run in Run.select().order_by(Run.id):
            told.setdefault(run.jid, []).append(run)
    logged = {job.jid: job for job in jobs}
    found = [f"{jid} ran and is not in the log" for jid in told.keys() - logged.keys()]
    # On a slow machine a time limit may strike before a job has written a word.
    silent = {jid for jid, job in logged.items() if job.error_type == "TimeLimitExceeded"}
    found += [f"{jid} is in the log and never ran" for jid in logged.keys() - told.keys() - silent]
    for jid in told.keys() & logged.keys():
        job, runs = logged[jid], told[jid]
        says = (ENDS.get(_outcome(runs[-1]), State.DEAD), runs[-1].attempt)
        if says != (job.state, job.attempt):
            found.append(f"{jid} is {job.state}, {job.attempt}, and says {says[0]}, {says[1]}")
        failed = [(r.attempt, _error(_outcome(r))) for r in runs if _outcome(r) != "finished"]
        # A wait for its section is none of a job's own runs.
        ran = job.failures.where(joblog.Failure.outcome != "waited")
        failures = [(failure.attempt, failure.error_type) for failure in ran]
        if failed != failures:
            found.append(f"{jid} has the failures {failures}, and says {failed}")
    return found


def _outcome(run: Any) -> str:
    # It was about to write down how it ended: only that strikes there.
    return run.outcome or "TimeLimitExceeded"


def _error(outcome: str) -> str:
    return {"stepped aside": "SteppedAside", "skipped": "SkipMessage"}.get(outcome, outcome)


def check(console: Console, jobs: JobQuery) -> bool:
    """Print whether the log agrees with the jobs' own record, job by job."""
    found = differences(jobs)
    with database.connection_context():
        runs = Run.select().count()
    console.print()
    if found:
        console.print(
            Text(f"The log and the jobs differ in {len(found)} places:", style="bold red")
        )
        for difference in found:
            console.print(f"  {difference}")
    else:
        console.print(
            Text.assemble(
                ("✓ ", "green"),
                (f"The log agrees with the jobs' own record: {jobs.count()} jobs, ", ""),
                (f"{runs} runs.", ""),
            )
        )
    return not found
