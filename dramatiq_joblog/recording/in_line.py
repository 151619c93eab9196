"""New waiters for a key: they join the end of its wait queue, a batch in a few statements."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dramatiq_joblog.locking.admission import Refusal
from dramatiq_joblog.locking.needs import RATE
from dramatiq_joblog.locking.waiters import Place
from dramatiq_joblog.states import STARTABLE, Start, State

from .events import UNANSWERED, Answer
from .waits import policy_of, put_off

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dramatiq_joblog.locking.needs import Need

    from .events import Ended, Started
    from .judge import Known
    from .transitions import Transitions


class InLine:
    """Makes jobs wait that need exactly one key.

    Parameters:
      transitions: The statements on jobs and on keys.
    """

    def __init__(self, transitions: Transitions) -> None:
        self._transitions = transitions
        self._locks = transitions.locks

    def join(self, events: Sequence[Started], rows: Mapping[str, Known]) -> dict[str, Answer]:
        """Enqueue as waiters those of *events* without an earlier run; their rows are locked.

        A job that already waits, and whose message is redelivered, keeps its position.
        """
        new: dict[Need, list[Started]] = {}
        for event in events:
            if self.is_new(event, rows.get(event.jid)):
                new.setdefault(event.needs[0], []).append(event)
        answers = {event.jid: _as_found(rows.get(event.jid)) for event in events}
        for need, some in new.items():
            answers |= self.put_off(need, some, rows)
        return answers

    def is_new(self, event: Started, row: Known | None) -> bool:
        """Return whether a start has no earlier run or wait to consider."""
        if event.replayed or event.row["attempt"] > 1:
            return False
        if row is None:
            return True
        if row.state not in STARTABLE or row.token is not None or row.waiting_since is not None:
            return False
        return self._transitions.judge.verdict(event, row).start is Start.BEGIN

    def put_off(
        self, need: Need, events: Sequence[Started], rows: Mapping[str, Known]
    ) -> dict[str, Answer]:
        """Make those of *events* wait whose policy and remaining time allow it."""
        if not events:
            return {}
        now = self._locks.now()
        waits: list[Ended] = []
        delays: dict[str, int] = {}
        for event in events:
            since = min(now, waits_since(rows, event) or now)
            policy, left = policy_of(need, Place(since=since), now - since)
            if policy == "wait":
                values, delays[event.jid] = put_off(event, since, now, left)
                values |= {"queue_time": None, "started_at": None, "updated_at": now}
                waits.append(event.as_end(event.row | values | {"section": need.key}))
        if not waits:
            return {}
        # For a waiter, the details of the refusal are never read.
        refusal = Refusal(need, f"is {_taken(need)}, or reserved for others")
        written = self._transitions.write_rows(waits)
        found = State.WAITING.value
        return {
            jid: Answer(granted=False, found=found, refusal=refusal, delay=delays[jid])
            for jid in delays
            if jid in written
        }


def waits_since(rows: Mapping[str, Known], event: Started) -> int | None:
    """Return since when a start's job has waited, in milliseconds; None if it does not wait."""
    row = rows.get(event.jid)
    return None if row is None else row.waiting_since


def _as_found(row: Known | None) -> Answer:
    waits = row is not None and row.state == State.WAITING
    return Answer(granted=False, found=State.WAITING.value) if waits else UNANSWERED


def _taken(need: Need) -> str:
    return f"used up: {need.limit} in {need.lasts} ms" if need.kind == RATE else "held"
