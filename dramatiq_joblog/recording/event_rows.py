"""The rows of a batch of events, and the keys that these free or keep."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from dramatiq_joblog.database.upsert import Portion, is_one_statement
from dramatiq_joblog.locking.admission import in_order
from dramatiq_joblog.locking.needs import SECTION
from dramatiq_joblog.states import State

from .events import Ended, Enqueued

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dramatiq_joblog.database.upsert import Part
    from dramatiq_joblog.locking.needs import Need

    from .events import Event


class Statements(NamedTuple):
    """The statements that rows are written with."""

    runs: Part
    enqueues: Part
    failures: Part
    lines: Part
    freeing: Part


class EventRows:
    """The rows of a batch of events, sorted by what becomes of them in one look at each event.

    Parameters:
      events: Of different jobs.
      statements: What they are written with.
    """

    def __init__(self, events: Sequence[Event], statements: Statements) -> None:
        self.runs: list[dict[str, Any]] = []
        self.enqueues: list[dict[str, Any]] = []
        self.failures: list[dict[str, Any]] = []
        self.lines: list[dict[str, Any]] = []
        #: The sections that are free once their runs have ended.
        self.freed: list[dict[str, Any]] = []
        #: The events that have a failure, those whose lines went out of bounds, and those whose
        #: jobs hold a key.
        self.failing: list[Ended] = []
        self.forgetting: list[Ended] = []
        self.holding: list[Event] = []
        #: Whether a key is held on, which is a statement of its own.
        self._holds_on = False
        for event in events:
            (self.enqueues if isinstance(event, Enqueued) else self.runs).append(event.row)
            if isinstance(event, Ended):
                self._add_end(event)
            if event.section is not None or event.unique is not None:
                self._add_holding(event)
        self.portions = (
            Portion(statements.runs, self.runs),
            Portion(statements.enqueues, self.enqueues),
            Portion(statements.failures, self.failures, follows=True),
            Portion(statements.lines, self.lines),
            Portion(statements.freeing, self.freed, follows=True),
        )

    def _add_end(self, event: Ended) -> None:
        if event.failure is not None:
            self.failing.append(event)
            self.failures.append(event.failure)
        if event.lines:
            self.lines += event.lines
        if event.forget is not None:
            self.forgetting.append(event)

    def _add_holding(self, event: Event) -> None:
        self.holding.append(event)
        self.freed += [_held(event, key) for key in freed_by(event)]
        if event.unique is not None or kept_for_retry(event):
            self._holds_on = True

    @property
    def is_one_statement(self) -> bool:
        """Whether it needs no transaction around it."""
        return not (self._holds_on or self.forgetting) and is_one_statement(self.portions)


def order_of(event: Event) -> tuple[int, str]:
    """Return the order in which all processes write rows: that of sending."""
    row = event.row
    return row.get("enqueued_at") or 0, row["jid"]


def freed_by(event: Event) -> list[str]:
    """Return the sections that are free once an event is written."""
    if event.section is None or not isinstance(event, Ended):
        return []
    goes_on = event.row["state"] == State.RETRYING
    return [n.key for n in event.needs if n.kind == SECTION and not (goes_on and n.is_kept)]


def kept_for_retry(event: Event) -> list[Need]:
    """Return the sections that are kept for the next run of a job."""
    if not isinstance(event, Ended) or event.row["state"] != State.RETRYING:
        return []
    return [need for need in event.needs if need.is_kept]


def _held(event: Event, key: str) -> dict[str, Any]:
    """Return a section that a run holds, for what frees it."""
    return {"key": key, "owner": event.jid, "token": event.row["token"]}


def keys_of(event: Event) -> tuple[bool, str, str]:
    """Return the keys that an event is about, for an order that all processes keep."""
    unique = (event.unique or {}).get("key", "")
    return (*in_order(event.needs[0]), unique) if event.needs else (False, "", unique)
