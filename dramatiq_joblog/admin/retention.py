"""Retention: deletes old jobs in final states, in bounded batches.

Deleted jobs stay in the totals.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from dramatiq_joblog.database.checkout import in_transaction
from dramatiq_joblog.database.clock import database_now
from dramatiq_joblog.database.dialects import dialect_of
from dramatiq_joblog.errors import ConfigurationError
from dramatiq_joblog.payload.given import given_mapping
from dramatiq_joblog.schema.models import to_millis
from dramatiq_joblog.schema.query import literal_states
from dramatiq_joblog.states import FINAL, FinalState, State
from dramatiq_joblog.statistics.cells import Cell, is_counted
from dramatiq_joblog.statistics.histogram import bucket_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from peewee import Database

    from dramatiq_joblog.schema.tables import Tables
    from dramatiq_joblog.statistics.rollups import Totals

#: Milliseconds that jobs are kept after their end, by final state; None for forever.
Keep: TypeAlias = Mapping[FinalState, int | None]

#: The number of jobs deleted at a time, and of failures and lines per statement.
DEFAULT_BATCH = 1000
_JIDS = 500
#: Milliseconds that a worker's row is kept after its end, and a unique key after it expired.
_KEEP_WORKERS, _KEEP_KEYS = 7 * 86_400_000, 86_400_000


@dataclass(frozen=True)
class Rule:
    """Jobs to delete: of one final state, ended by an instant, of some job types."""

    state: State
    #: Milliseconds since 1970.
    until: int
    #: The only job type; None for all except those in *but*.
    job_type: str | None
    but: tuple[str, ...] = ()


class Retention:
    """The retention of a log.

    Parameters:
      tables: The log's tables.
      totals: The totals, which outlive the jobs.
      keep: Milliseconds that a job is kept after its end, by final state; states without one are
      kept forever.
      keep_types: Different times for some job types: by state, or one for all; None for forever.

    Raises:
      ConfigurationError: If a state is not final, or a time is invalid.
    """

    def __init__(
        self,
        tables: Tables[Any],
        *,
        totals: Totals,
        keep: Keep | None = None,
        keep_types: Mapping[str, Keep | int | None] | None = None,
    ) -> None:
        self._tables = tables
        # Any: peewee's queries are untyped.
        self._job: Any = tables.job
        self._totals = totals
        self._database: Database = tables.database
        self.keep = _checked({} if keep is None else keep, "keep")
        self.keep_types: dict[str, Any] = {
            str(getattr(job_type, "value", job_type)): _checked(
                dict.fromkeys(FINAL, value)
                if value is None or isinstance(value, int)
                else {
                    **{state.value: kept for state, kept in self.keep.items()},
                    **_times(value, f"keep_types[{job_type!r}]"),
                },
                f"keep_types[{job_type!r}]",
            )
            for job_type, value in _times(keep_types, "keep_types").items()
        }

    def but(self, keep: Keep | None) -> Retention:
        """Return a copy with different times; those of job types stay."""
        if keep is None:
            return self
        return Retention(
            self._tables,
            totals=self._totals,
            keep=keep,
            keep_types=self.keep_types,
        )

    def rules(self, now: int) -> list[Rule]:
        """Return what to delete at an instant, in milliseconds since 1970."""
        special = tuple(sorted(self.keep_types))
        rules = [
            Rule(state, now - kept, None, special)
            for state, kept in self.keep.items()
            if kept is not None
        ]
        for job_type in special:
            rules += [
                Rule(state, now - kept, job_type)
                for state, kept in self.keep_types[job_type].items()
                if kept is not None
            ]
        return rules

    def count(self, now: int) -> Counter[str]:
        """Return how many jobs would be deleted, by state."""
        counter: Counter[str] = Counter()
        for rule in self.rules(now):
            counter[rule.state.value] += self._select(rule, (0, 0)).count()
        return counter

    def prune(self, now: int, batch: int) -> Iterator[Counter[str]]:
        """Delete old jobs, and yield the numbers after each batch; each is a transaction.

        All of them must already be in the totals.
        """
        places = dict.fromkeys(self.rules(now), (0, 0))
        # In turn: a large backlog of one rule must not hold up the others.
        while places:
            for rule, place in list(places.items()):
                delete = functools.partial(self._batch, rule, place, batch, now)
                reached, deleted = in_transaction(self._database, delete)
                if reached is None:
                    del places[rule]
                else:
                    places[rule] = reached
                if deleted:
                    yield deleted
        yield from self._rest(batch)

    def _select(self, rule: Rule, place: tuple[int, int]) -> Any:
        """Select the jobs of a rule after a position, in order of their ends."""
        job = self._job
        at, number = place
        query = job.select().where(
            job.state.in_(literal_states([rule.state])),
            job.finished_at <= rule.until,
            job.finished_at >= at,
            (job.finished_at > at) | (job.id > number),
        )
        if rule.job_type is not None:
            query = query.where(job.job_type == rule.job_type)
        elif rule.but:
            query = query.where(job.job_type.is_null() | job.job_type.not_in(rule.but))
        return query

    def _batch(
        self, rule: Rule, place: tuple[int, int], batch: int, now: int
    ) -> tuple[tuple[int, int] | None, Counter[str]]:
        """Delete some jobs after a position; return the next position, and the numbers deleted."""
        job = self._job
        query = (
            self._select(rule, place)
            .select(
                *(job.id, job.jid, job.actor, job.job_type, job.error_type),
                *(job.finished_at, job.duration, job.queue_time),
            )
            .order_by(job.finished_at, job.id)
            .limit(batch)
        )
        # No run may begin between this statement and the end of the transaction.
        rows = list(dialect_of(self._database).lock(query).tuples())
        if not rows:
            return None, Counter()
        cells = [
            cell
            for _, _, actor, job_type, error_type, at, *times in rows
            for cell in _cells(at, (actor, job_type, rule.state.value, error_type), times)
        ]
        portions = [
            {row[1]: row for row in rows[start : start + _JIDS]}
            for start in range(0, len(rows), _JIDS)
        ]
        for some in portions:
            # Uses their jobs' rows, which are deleted next.
            cells += self._failed(some)
        deleted = Counter({rule.state.value: self._delete(rule, [row[0] for row in rows])})
        for some in portions:
            for name in ("failure", "line"):
                model = getattr(self._tables, name)
                deleted[f"{name}s"] += model.delete().where(model.jid.in_(list(some))).execute()
        self._totals.add_gone(cells, now)
        last = (to_millis(rows[-1][5]), rows[-1][0])
        return (last if len(rows) == batch else None), +deleted

    def _delete(self, rule: Rule, numbers: list[int]) -> int:
        job = self._job
        deleted = (
            job.delete()
            .where(
                job.id.in_(numbers),
                # The statement itself has the guard, independent of what was read before.
                job.state.in_(literal_states([rule.state])),
                job.finished_at <= rule.until,
            )
            .execute()
        )
        return int(deleted)

    def _failed(self, jobs: Mapping[str, Any]) -> list[Cell]:
        """Return the cells of the failures of some jobs."""
        failure: Any = self._tables.failure
        failures = (
            failure.select(
                *(failure.jid, failure.outcome, failure.error_type),
                *(failure.finished_at, failure.duration),
            )
            .join(self._job, on=(self._job.jid == failure.jid))
            .where(
                failure.jid.in_(list(jobs)),
                is_counted(self._job, failure),
                failure.finished_at.is_null(False),
            )
            .tuples()
        )
        cells: list[Cell] = []
        for jid, outcome, error_type, at, duration in failures:
            _, _, actor, job_type, *_ = jobs[jid]
            cells += _cells(at, (actor, job_type, outcome, error_type), (duration, None))
        return cells

    def _rest(self, batch: int) -> Iterator[Counter[str]]:
        """Delete rows of workers that ended long ago, and expired unique keys.

        A free section's row stays, because its fence must never decrease.
        """
        worker, lock = self._tables.worker, self._tables.lock
        now = database_now(self._database)
        for name, model, old in (
            (
                "workers",
                worker,
                (worker.swept_at.is_null(False), worker.heartbeat_at < now - _KEEP_WORKERS),
            ),
            (
                "keys",
                lock,
                (
                    lock.kind == "unique",
                    lock.owner.is_null() | (lock.expires_at < now - _KEEP_KEYS),
                ),
            ),
        ):
            while numbers := [row.id for row in model.select(model.id).where(*old).limit(batch)]:
                number = model.delete().where(model.id.in_(numbers), *old).execute()
                if not number:
                    break
                yield Counter({name: number})


def _cells(
    at: Any, texts: tuple[str | None, ...], times: Sequence[int | None]
) -> tuple[Cell, Cell]:
    """Return the cells of one job, or of one failed run: the count and the times."""
    actor, job_type, outcome, error_type = (str(text or "") for text in texts)
    place = to_millis(at), actor, job_type, outcome
    taken = Cell(*place, "")
    for histogram, time in zip((taken.durations, taken.queue_times), times, strict=True):
        if time is not None:
            histogram[bucket_of(time)] = 1
    return Cell(*place, error_type, 1), taken


def _times(keep: Any, name: str) -> Mapping[Any, Any]:
    of = "times by job type" if name == "keep_types" else "milliseconds by final state"
    return {} if keep is None else given_mapping(name, keep, of)


def _checked(keep: Mapping[Any, int | None], name: str) -> dict[State, int | None]:
    checked = {}
    for state, kept in _times(keep, name).items():
        if state not in {s.value for s in FINAL}:
            raise ConfigurationError(
                f"{name} names {str(state)!r}: only finished, dead and skipped jobs can be deleted"
            )
        if kept is not None and (isinstance(kept, bool) or not isinstance(kept, int) or kept < 0):
            raise ConfigurationError(
                f"{name}[{str(state)!r}]={kept!r} must be milliseconds, or None forever"
            )
        checked[State(state)] = kept
    return checked
