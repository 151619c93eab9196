"""``logs``: the log lines of a job, optionally followed live."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from dramatiq_joblog.states import FINAL, State

from .app import NOTHING, Session, command
from .show import Jid, find
from .style import QUIET, line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dramatiq_joblog import JobLog

    from .table import Screen

#: How many lines are read at once.
_BATCH = 500
#: Lines with lower ids may be committed after lines with higher ones, by up to this many.
_DISORDER = 200


@command(
    "logs",
    "Show the log lines of a job; -f follows them.",
    examples=[
        ("logs 4e1b9c70", "all its lines, of all its runs"),
        ("logs 4e1b9c70 -f", "and new lines, until it has ended"),
    ],
)
@click.argument("jid", type=Jid())
@click.option("-f", "--follow", is_flag=True, help="Follow until the job has ended, or Ctrl-C.")
@click.option(
    "--every",
    default=500,
    show_default=True,
    type=click.IntRange(50),
    metavar="MS",
    help="With -f, milliseconds between two checks.",
)
def logs(session: Session, *, jid: str, follow: bool, every: int) -> None:
    """Show the lines that a job logged, of all its runs.

    Lines of INFO and above are kept, unless the actor's log_lines sets another level. With -f it
    follows the job until it has ended, and exits with 1 if it did not finish. In a pipe: time,
    level, attempt, text; with --json one document per line.
    """
    joblog, screen = session.joblog, session.screen
    job = find(joblog, jid)
    lines = _Lines(joblog, job.jid)
    state = job.state
    while True:
        for row in lines.fresh():
            _show(screen, row, as_json=session.json)
        screen.console.file.flush()
        if not follow or state in FINAL:
            break
        time.sleep(every / 1000)
        # The state is read first, so that the last lines are certainly read after it.
        state = joblog.get(job.jid).state
    if screen.live and not session.json and not lines.any:
        screen.write(("No log lines of this job were kept.", QUIET))
    if follow and state != State.FINISHED:
        raise click.exceptions.Exit(NOTHING)


class _Lines:
    """The lines of one job that are not yet shown."""

    def __init__(self, joblog: JobLog, jid: str) -> None:
        # Any: a bound model.
        self._line: Any = joblog.Line
        self._jid = jid
        self._shown: set[int] = set()

    @property
    def any(self) -> bool:
        """Whether any line was shown."""
        return bool(self._shown)

    def fresh(self) -> Iterator[Any]:
        """Yield new lines in the order in which they were written."""
        line_ = self._line
        after = max(self._shown, default=0) - _DISORDER
        while True:
            mine = line_.select().where(line_.jid == self._jid, line_.id > after)
            rows = list(mine.order_by(line_.id).limit(_BATCH))
            fresh = [row for row in rows if row.id not in self._shown]
            self._shown.update(row.id for row in fresh)
            yield from sorted(fresh, key=lambda row: (row.attempt, row.time, row.number))
            if len(rows) < _BATCH:
                return
            after = rows[-1].id


def _show(screen: Screen, row: Any, *, as_json: bool) -> None:
    if as_json:
        screen.json(row.as_dict())
        return
    at = f"{row.time:%H:%M:%S}.{row.time.microsecond // 1000:03}"
    if not screen.live:
        whole = row.as_dict()["time"]
        screen.raw(f"{whole}\t{row.level or '-'}\t{row.attempt}\t{line(row.text)}")
        return
    before = f"{at} {row.level.lower():<8} "
    screen.hanging(Text.assemble((before, QUIET), line(row.text)), len(before))
