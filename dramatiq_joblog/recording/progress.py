"""Progress and log lines of the running jobs of a process."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from peewee import Case

from dramatiq_joblog.payload.values import host_now
from dramatiq_joblog.schema.query import literal_states
from dramatiq_joblog.states import OPEN

from .current import progress_of

if TYPE_CHECKING:
    from .current import LiveRun
    from .transitions import Transitions

#: The number of jobs in one statement.
_BATCH = 100


class Reports:
    """The jobs that run in this process, and their reports that are not stored yet.

    Parameters:
      transitions: The statements of the log.
    """

    def __init__(self, transitions: Transitions) -> None:
        self._transitions = transitions
        self._runs: dict[int, LiveRun] = {}

    def begin(self, run: LiveRun) -> None:
        """Add a run."""
        self._runs[id(run)] = run

    def end(self, run: LiveRun) -> None:
        """Remove a run; the rest is written with its outcome."""
        self._runs.pop(id(run), None)

    def write(self) -> None:
        """Write new reports; called on the writer's thread."""
        runs = list(self._runs.values())
        batches = [
            (run.lines, batch)
            for run in runs
            if run.lines is not None and (batch := run.lines.take()) is not None
        ]
        reported = [(run, news) for run in runs if (news := run.news) is not None]
        if not batches and not reported:
            return
        with self._transitions.atomic():
            self._transitions.lines.insert([batch for _, batch in batches])
            for start in range(0, len(reported), _BATCH):
                self._write_progress(reported[start : start + _BATCH])
        for lines, batch in batches:
            lines.done(batch)
        for run, progress in reported:
            run.note_written(progress)

    def _write_progress(self, reported: list[tuple[LiveRun, Any]]) -> None:
        model = self._transitions.job
        values = [
            (run.jid, json.dumps(progress_of(progress, run.redactor))) for run, progress in reported
        ]
        progress = Case(model.jid, values, model.progress)
        # Only for the job's current run: late reports change nothing.
        model.update(progress=progress, updated_at=host_now()).where(
            model.jid.in_([jid for jid, _ in values]),
            model.token.in_([run.token for run, _ in reported]),
            model.state.in_(literal_states(OPEN)),
        ).execute()
