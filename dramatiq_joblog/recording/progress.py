"""What running jobs tell meanwhile: their log lines and their progress, for all of a process."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from peewee import Case

from dramatiq_joblog.payload.sanitize import fold_jid
from dramatiq_joblog.schema.query import literal_states
from dramatiq_joblog.states import OPEN

from .current import progress_of

if TYPE_CHECKING:
    from .current import CurrentJob
    from .transitions import Transitions

#: As many jobs are told of in one statement.
_BATCH = 100


class Reports:
    """The jobs that run in this process, and what the log does not know of them yet.

    Parameters:
      transitions: The statements of the log.
    """

    def __init__(self, transitions: Transitions) -> None:
        self._transitions = transitions
        self._jobs: dict[int, CurrentJob] = {}

    def begin(self, job: CurrentJob) -> None:
        """Follow a job."""
        self._jobs[id(job)] = job

    def end(self, job: CurrentJob) -> None:
        """Follow it no more: the rest comes with its outcome."""
        self._jobs.pop(id(job), None)

    def write(self) -> None:
        """Write what is new; on the writer's thread."""
        jobs = list(self._jobs.values())
        batches = [
            (job.lines, batch)
            for job in jobs
            if job.lines is not None and (batch := job.lines.take()) is not None
        ]
        told = [(job, job.told) for job in jobs if job.told is not job.written]
        if not batches and not told:
            return
        with self._transitions.atomic():
            self._transitions.insert_lines([batch for _, batch in batches])
            for start in range(0, len(told), _BATCH):
                self._write_progress(told[start : start + _BATCH])
        for lines, batch in batches:
            lines.done(batch)
        for job, progress in told:
            job.written = progress

    def _write_progress(self, told: list[tuple[CurrentJob, Any]]) -> None:
        model = self._transitions.job
        values = [
            (fold_jid(job.jid), json.dumps(progress_of(progress, job.redactor)))
            for job, progress in told
        ]
        progress = Case(model.jid, values, model.progress)
        # Only of runs that are still the job's: a late word changes nothing.
        model.update(progress=progress, updated_at=time.time_ns() // 1_000_000).where(
            model.jid.in_([jid for jid, _ in values]),
            model.token.in_([job.token for job, _ in told]),
            model.state.in_(literal_states(OPEN)),
        ).execute()
