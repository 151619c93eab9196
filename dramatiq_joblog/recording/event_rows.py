"""The rows of a batch of events, and the keys that the events release or keep."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from dramatiq_joblog.database.upsert import Portion, is_one_statement
from dramatiq_joblog.locking.admission import in_order
from dramatiq_joblog.locking.needs import SECTION
from dramatiq_joblog.states import State

from .events import Amended, Ended, Enqueued

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dramatiq_joblog.database.upsert import Part
    from dramatiq_joblog.locking.needs import Need

    from .events import Event


class Statements(NamedTuple):
    """The statements that write the rows."""

    runs: Part
    enqueues: Part
    failures: Part
    lines: Part
    freeing: Part


class EventRows:
    """The rows of a batch of events, grouped by the statement that writes them.

    Parameters:
      events: The events, each of a different job.
      statements: The statements that write them.
    """

    def __init__(self, events: Sequence[Event], statements: Statements) -> None:
        self.runs: list[dict[str, Any]] = []
        self.enqueues: list[dict[str, Any]] = []
        self.failures: list[dict[str, Any]] = []
        self.lines: list[dict[str, Any]] = []
        #: The sections to release when their runs have ended.
        self.freed: list[dict[str, Any]] = []
        #: The events with a failure, those with log lines to delete, and those that hold a key,
        #: and those that change a run that has begun.
        self.failing: list[Ended] = []
        self.forgetting: list[Ended] = []
        self.holding: list[Event] = []
        self.amended: list[Amended] = []
        #: Whether a key stays held, which takes a separate statement.
        self._holds_on = False
        for event in events:
            if isinstance(event, Amended):
                self.amended.append(event)
                continue
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
        """Whether a single statement writes all, so that no transaction is needed."""
        return not (self._holds_on or self.forgetting or self.amended) and is_one_statement(
            self.portions
        )


def order_of(event: Event) -> tuple[int, str]:
    """Return the sort key by which all processes write rows: the order of sending."""
    row = event.row
    return row.get("enqueued_at") or 0, row["jid"]


def freed_by(event: Event) -> list[str]:
    """Return the keys of the sections that an event releases."""
    if isinstance(event, Amended):
        return [need.key for need in event.needs] if event.is_withdrawal else []
    if event.section is None or not isinstance(event, Ended):
        return []
    goes_on = event.row["state"] == State.RETRYING
    return [n.key for n in event.needs if n.kind == SECTION and not (goes_on and n.is_kept)]


def kept_for_retry(event: Event) -> list[Need]:
    """Return the sections that stay held for the job's next run."""
    if not isinstance(event, Ended) or event.row["state"] != State.RETRYING:
        return []
    return [need for need in event.needs if need.is_kept]


def _held(event: Event, key: str) -> dict[str, Any]:
    """Return a section held by a run, in the form that releasing takes."""
    return {"key": key, "owner": event.jid, "token": event.row["token"]}


def keys_of(event: Event) -> tuple[bool, str, str]:
    """Return the keys of an event, as a sort key that all processes use."""
    unique = (event.unique or {}).get("key", "")
    return (*in_order(event.needs[0]), unique) if event.needs else (False, "", unique)
