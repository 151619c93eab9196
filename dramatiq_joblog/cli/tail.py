"""``tail``: follow jobs live."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click
from peewee import PeeweeException
from rich.text import Text

from dramatiq_joblog import DatabaseAwayError
from dramatiq_joblog.states import FINAL, State

from .app import Session, command
from .cells import SHORT_JID, kind, why
from .filters import filtered, select
from .style import QUIET, duration, line, mark, safe

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from dramatiq_joblog import JobLog
    from dramatiq_joblog.schema.query import JobQuery

    from .table import Screen

#: How much later than its time a row may appear: clocks differ, and commits take time.
_LATE = timedelta(seconds=10)
#: Lines with lower ids may be committed after lines with higher ones, by up to this many.
_DISORDER = 500
#: The most rows that are read at once.
_BATCH = 1_000

#: States of jobs that were only sent, and of jobs to which more has happened.
_SENT, _BUSY = (
    (State.ENQUEUED, State.DELAYED),
    (State.WAITING, State.STARTED, State.RETRYING, State.LOST),
)


@command(
    "tail",
    "Follow jobs live.",
    examples=[
        ("tail", "everything, until Ctrl-C"),
        ("tail state:dead state:retrying", "only what fails"),
        ("tail --lines --user 7", "the jobs of one user, and what they log"),
        ("tail --json type:import", "one JSON document per line, for programs"),
    ],
)
@filtered
@click.option(
    "--every",
    default=500,
    show_default=True,
    type=click.IntRange(50),
    metavar="MS",
    help="Milliseconds between two checks.",
)
@click.option(
    "--limit",
    "-n",
    default=10,
    show_default=True,
    type=click.IntRange(0, _BATCH),
    help="Start with this many of the latest events.",
)
@click.option("--lines", is_flag=True, help="Also show what the jobs log.")
def tail(
    session: Session,
    *,
    words: tuple[str, ...],
    filters: dict[str, Any],
    every: int,
    limit: int,
    lines: bool,
) -> None:
    """Follow jobs: a line for each new state, until Ctrl-C (exit code 130).

    A job that passes through several states between two checks is shown once, in its latest
    state.
    With --json each line is a document: {"job": {...}}, or {"line": {...}} for what a job logs.
    """
    joblog = session.joblog
    query = select(session, words, filters)
    writer = _Writer(session.screen, as_json=session.json)
    looks = [Changes(joblog, query, limit).look]
    if lines:
        looks.append(Lines(joblog, query if words or any(filters.values()) else None).look)
    away = False
    while True:
        try:
            events = sorted(
                (event for look in looks for event in look()), key=lambda event: event[0]
            )
            away = False
        except (DatabaseAwayError, PeeweeException) as e:
            if not writer.has_written:
                raise
            if not away:
                click.echo(f"{session.refusal(e).message}; trying again", err=True)
            away, events = True, []
            joblog.release()
        for _, kind_, row in events:
            writer.write(kind_, row)
        time.sleep(every / 1000)


class Changes:
    """The jobs of a query whose state changed since the last check.

    It queries new jobs, active jobs and ended jobs, each by an index, so the cost does not grow
    with the log.
    """

    def __init__(self, joblog: JobLog, query: JobQuery, first: int) -> None:
        self._joblog = joblog
        self._query = query
        self._first: int | None = first
        #: What was shown of each job, by its id; a job is shown again if that changed.
        self._shown: dict[int, tuple[Any, ...]] = {}

    def look(self) -> Iterator[tuple[datetime, str, Any]]:
        """Yield what is new, with its time."""
        since = self._joblog.now() - _LATE
        rows = self._changed(since)
        seen = {row.id: (row.state, row.attempt, row.started_at, row.eta) for row in rows}
        fresh = [row for row in rows if self._shown.get(row.id) != seen[row.id]]
        if self._first is not None:
            fresh, self._first = self._last(self._first), None
        self._shown = seen
        for row in fresh:
            yield row.updated_at, "job", row

    def _changed(self, since: datetime) -> list[Any]:
        job = self._joblog.Job
        sent = self._query.in_state(*_SENT).where(job.created_at >= since)
        busy = self._query.in_state(*_BUSY).where(job.updated_at >= since)
        ended = self._query.in_state(*FINAL).where(job.finished_at >= since)
        return [
            row
            for query, at in (
                (sent, job.created_at),
                (busy, job.updated_at),
                (ended, job.finished_at),
            )
            for row in query.order_by(at, job.id).limit(_BATCH)
        ]

    def _last(self, number: int) -> list[Any]:
        return list(self._query.page(limit=number).jobs)[::-1] if number else []


class Lines:
    """The log lines of a query's jobs since the last check; of all jobs if there is no query."""

    def __init__(self, joblog: JobLog, query: JobQuery | None) -> None:
        self._line = joblog.Line
        self._job = joblog.Job
        self._query = query
        last = self._line.select().order_by(self._line.id.desc()).first()
        self._last = 0 if last is None else last.id
        self._shown: set[int] = set(range(max(0, self._last - _DISORDER), self._last + 1))

    def look(self) -> Iterator[tuple[datetime, str, Any]]:
        """Yield what is new, with its time."""
        model = self._line
        rows = list(
            model.select()
            .where(model.id > self._last - _DISORDER)
            .order_by(model.id)
            .limit(_DISORDER + _BATCH)
        )
        fresh = [row for row in rows if row.id not in self._shown]
        if rows:
            self._last = max(self._last, rows[-1].id)
        self._shown = {row.id for row in rows} | {
            number for number in self._shown if number > self._last - _DISORDER
        }
        wanted = self._wanted({row.jid for row in fresh})
        for row in fresh:
            if row.jid in wanted:
                yield row.time, "line", row

    def _wanted(self, jids: set[str]) -> set[str]:
        if self._query is None or not jids:
            return jids
        return {row.jid for row in self._query.where(self._job.jid.in_(jids))}


class _Writer:
    """Writes events as they happen."""

    def __init__(self, screen: Screen, *, as_json: bool) -> None:
        self._screen = screen
        self._json = as_json
        #: Whether anything was written.
        self.has_written = False

    def write(self, kind_: str, row: Any) -> None:
        """Write one line."""
        self.has_written = True
        if self._json:
            self._screen.json({kind_: row.as_dict()})
        elif kind_ == "job":
            self._screen.fit(_job(row, live=self._screen.live))
        else:
            self._screen.fit(_line(row, live=self._screen.live))
        self._screen.console.file.flush()


def _time(instant: datetime) -> str:
    return f"{instant:%H:%M:%S}.{instant.microsecond // 1000:03}"


def _jid(jid: str, *, live: bool) -> str:
    return safe(jid[:SHORT_JID] if live else jid)


def _job(job: Any, *, live: bool) -> Text:
    state = mark(job.state)
    state.pad_right(max(0, 11 - len(state)))
    text = Text.assemble((f"{_time(job.updated_at)}  ", QUIET), state)
    text.append(f"  {_jid(job.jid, live=live)}", QUIET).append(f"  {line(kind(job))}")
    if job.user_id is not None:
        text.append(f"  user {line(job.user_id)}", QUIET)
    if job.state in FINAL and job.duration is not None:
        text.append(f"  {duration(job.duration)}")
    if job.attempt > 1:
        text.append(f"  attempt {job.attempt}", QUIET)
    reason = why(job, job.updated_at)
    return text.append("  ").append_text(reason) if reason else text


def _line(row: Any, *, live: bool) -> Text:
    return Text.assemble(
        (f"{_time(row.time)}  │ {row.level.lower():<9}  {_jid(row.jid, live=live)}  ", QUIET),
        line(row.text),
    )
