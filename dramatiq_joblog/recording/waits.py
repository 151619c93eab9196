"""Jobs that wait for keys: how a wait begins, and how it ends."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from dramatiq_joblog.locking.presence import COMES_BACK, HELD_FOR
from dramatiq_joblog.payload.values import to_millis
from dramatiq_joblog.states import State

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from dramatiq_joblog.locking.needs import Need
    from dramatiq_joblog.locking.waiters import Place

    from .events import Started
    from .judge import Known
    from .transitions import Transitions


#: The columns stored with a job's wait for its section.
_OF_A_WAITER = ("jid", "attempt", "worker")


def policy_of(need: Need, place: Place, waited: int) -> tuple[str, int | None]:
    """Return the policy for a job whose keys are refused, and how long it may still wait."""
    if need.on_conflict == "wait" and need.wait_for is not None:
        left = need.wait_for - waited
        return ("wait" if left > 0 else need.on_timeout), left
    # A half-done job is neither dropped nor failed: it waits, whatever its policy.
    return ("wait" if place.begun else need.on_conflict), None


def put_off(event: Started, since: int, now: int, left: int | None) -> tuple[dict[str, Any], int]:
    """Return the columns of a waiting job, and the milliseconds for which it is put back.

    Parameters:
      event: Its start.
      since: When the job began to wait, in milliseconds.
      now: The database's time, in milliseconds.
      left: Milliseconds that it may still wait; None for no limit.
    """
    delay = comes_back(event, left)
    eta = now + min(delay, HELD_FOR)
    return {"state": State.WAITING.value, "eta": eta, "waiting_since": since}, delay


def comes_back(event: Started, left: int | None) -> int:
    """Return the milliseconds until a waiting job is redelivered without a promotion."""
    # A waiter is promoted when its turn comes; the delay is only a fallback.
    delay = round(COMES_BACK * random.uniform(0.8, 1.0))  # noqa: S311
    for latest in (left, event.comes_back_within):
        delay = delay if latest is None else min(delay, latest)
    return max(1, delay)


def waits_afresh(event: Started, row: Known | None) -> bool:
    """Return whether a job waits and has never begun, so that only its queue position matters."""
    if row is None or row.state != State.WAITING or row.waiting_since is None or event.replayed:
        return False
    is_first_attempt = row.attempt == event.row["attempt"] == 1
    return is_first_attempt and row.started_at is None and row.token != event.row["token"]


def fresh_waiters(
    transitions: Transitions, events: Iterable[Started], rows: Mapping[str, Known]
) -> set[str]:
    """Return the jids of those of *events* whose jobs wait and have never begun."""
    waiters = [event.jid for event in events if waits_afresh(event, rows.get(event.jid))]
    # If an earlier run has ended, this may be a redelivery.
    return {*waiters} - transitions.kept.ran_before(waiters) if waiters else set()


def end_waits(
    transitions: Transitions, events: Iterable[Started], rows: Mapping[str, Known]
) -> None:
    """End the waits of the jobs among *events* that have now begun."""
    waited = [
        (event.row, row.waiting_since)
        for event in events
        if (row := rows.get(event.jid)) is not None and row.waiting_since is not None
    ]
    if waited:
        now = transitions.locks.now()
        transitions.kept.end_waiting_all([(row, min(since, now)) for row, since in waited], now)


def abandon_waits(transitions: Transitions, rows: Iterable[Any], now: int) -> None:
    """End the waits of those jobs among *rows* that wait for keys and will not run."""
    waits = [
        ({name: getattr(row, name) for name in _OF_A_WAITER}, to_millis(row.waiting_since))
        for row in rows
        if row.waiting_since is not None
    ]
    if waits:
        transitions.kept.end_waiting_all(waits, now)
        transitions.locks.reservations.leave_all([waiter["jid"] for waiter, _ in waits])
