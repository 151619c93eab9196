"""Starts that need a rate and nothing else: those of one key begin, or wait, together."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dramatiq_joblog.locking.admission import Refusal
from dramatiq_joblog.locking.leases import Held
from dramatiq_joblog.locking.needs import RATE
from dramatiq_joblog.locking.waiters import Place
from dramatiq_joblog.states import STARTABLE, Start, State

from .events import Answer, keeps_newest
from .waits import end_waits, fresh_waiters, policy_of, put_off

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dramatiq_joblog.locking.needs import Need

    from .events import Ended, Started
    from .judge import Known
    from .transitions import Transitions

#: As many of those that wait for a key are looked at, at least.
_LEAST = 16


class Rated:
    """Begins runs whose only need is a rate, in a few statements for all of one key.

    Parameters:
      transitions: The statements on jobs and on keys.
    """

    def __init__(self, transitions: Transitions) -> None:
        self._transitions = transitions
        self._locks = transitions.locks

    def begin(self, events: Sequence[Started], rows: Mapping[str, Known]) -> dict[str, Answer]:
        """Answer those of *events* that can be answered together; their rows are locked."""
        groups = self._groups(events, rows)
        if not groups:
            return {}
        answers: dict[str, Answer] = {}
        limits = self._locks.limits.of(list(groups))
        for key in sorted(groups):
            need = groups[key][0].needs[0]
            limited = replace(need, limit=limits[key]) if key in limits else need
            answers |= self._begin_of_key(limited, groups[key], rows)
        return answers

    def _groups(
        self, events: Sequence[Started], rows: Mapping[str, Known]
    ) -> dict[str, list[Started]]:
        """Return the starts that can be answered together, by their keys."""
        groups: dict[str, list[Started]] = {}
        rated = [event for event in events if _needs_a_rate(event)]
        waiters = fresh_waiters(self._transitions, rated, rows)
        for event in rated:
            if event.jid in waiters or self._is_new(event, rows.get(event.jid)):
                of_key = groups.setdefault(event.needs[0].key, [])
                if not of_key or of_key[0].needs == event.needs:
                    of_key.append(event)
        return groups

    def _is_new(self, event: Started, row: Known | None) -> bool:
        """Return whether nothing was before that a start must look at."""
        if event.replayed or event.row["attempt"] > 1:
            return False
        if row is None:
            return True
        if row.state not in STARTABLE or row.token is not None or row.waiting_since is not None:
            return False
        return self._transitions.judge.verdict(event, row).start is Start.BEGIN

    def _begin_of_key(
        self, need: Need, events: Sequence[Started], rows: Mapping[str, Known]
    ) -> dict[str, Answer]:
        """Begin those of *events* whose turn it is, and let the others wait."""
        window, waiters = self._locks.rates.window(need), self._locks.waiters
        most = max(_LEAST, 2 * len(events))
        line = waiters.line(need.key, most)
        free = window.room(len(line) + len(events))
        if len(line) == most and free > most:
            # Whether a newcomer may begin is seen only by all who may begin before it.
            free = window.room(need.limit)
            line = waiters.line(need.key, free)
        newcomers = [event for event in events if not _waits(rows, event)]
        # One that waits comes in by its place in the line, and a newcomer behind all of them.
        ahead = set(line[:free])
        in_turn = [event for event in events if event.jid in ahead]
        begun = [*in_turn, *newcomers[: max(0, free - len(line))]]
        answers: dict[str, Answer] = {}
        if begun:
            window.take(len(begun))
            answers |= self._begin(begun, rows)
        known = {*line, *(event.jid for event in newcomers)} - {event.jid for event in begun}
        return answers | self._put_off(need, [e for e in events if e.jid in known], rows)

    def _begin(self, events: Sequence[Started], rows: Mapping[str, Known]) -> dict[str, Answer]:
        written = self._transitions.write_rows(events)
        begun = [event for event in events if event.jid in written]
        end_waits(self._transitions, begun, rows)
        return {event.jid: Answer(granted=True, lease=Held(())) for event in begun}

    def _put_off(
        self, need: Need, events: Sequence[Started], rows: Mapping[str, Known]
    ) -> dict[str, Answer]:
        """Let those of *events* wait whose policy and time say so."""
        if not events:
            return {}
        now = self._locks.now()
        waits: list[Ended] = []
        delays: dict[str, int] = {}
        for event in events:
            since = min(now, _waits(rows, event) or now)
            policy, left = policy_of(need, Place(since=since), now - since)
            if policy == "wait":
                values, delays[event.jid] = put_off(event, since, now, left)
                values |= {"queue_time": None, "started_at": None, "updated_at": now}
                waits.append(event.as_end(event.row | values | {"section": need.key}))
        if not waits:
            return {}
        # They wait: nobody reads more than that of what keeps them out.
        refusal = Refusal(need, f"is used up: {need.limit} in {need.lasts} ms, or kept for others")
        written = self._transitions.write_rows(waits)
        found = State.WAITING.value
        return {
            jid: Answer(granted=False, found=found, refusal=refusal, delay=delays[jid])
            for jid in delays
            if jid in written
        }


def _needs_a_rate(event: Started) -> bool:
    """Return whether all that a run needs is a rate."""
    return [need.kind for need in event.needs] == [RATE] and not keeps_newest(event.unique)


def _waits(rows: Mapping[str, Known], event: Started) -> int | None:
    """Return since when the job of a start waits, in milliseconds; None for a newcomer."""
    row = rows.get(event.jid)
    return None if row is None else row.waiting_since
