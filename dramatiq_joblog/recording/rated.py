"""Starts that need only a rate limit: those of one key begin, or wait, together."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dramatiq_joblog.locking.leases import Held
from dramatiq_joblog.locking.needs import RATE

from .events import Answer, keeps_newest
from .in_line import InLine, waits_since
from .waits import end_waits, fresh_waiters

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dramatiq_joblog.locking.needs import Need

    from .events import Started
    from .judge import Known
    from .transitions import Transitions

#: The minimum number of a key's waiters that are checked.
_LEAST = 16


class Rated:
    """Begins runs that need only a rate limit, in a few statements for each key.

    Parameters:
      transitions: The statements on jobs and on keys.
    """

    def __init__(self, transitions: Transitions) -> None:
        self._transitions = transitions
        self._locks = transitions.locks
        self._in_line = InLine(transitions)

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
            if event.jid in waiters or self._in_line.is_new(event, rows.get(event.jid)):
                of_key = groups.setdefault(event.needs[0].key, [])
                if not of_key or of_key[0].needs == event.needs:
                    of_key.append(event)
        return groups

    def _begin_of_key(
        self, need: Need, events: Sequence[Started], rows: Mapping[str, Known]
    ) -> dict[str, Answer]:
        """Begin those of *events* whose turn it is, and make the others wait."""
        window, waiters = self._locks.rates.window(need), self._locks.waiters
        most = max(_LEAST, 2 * len(events))
        line = waiters.line(need.key, most)
        free = window.free(len(line) + len(events))
        if len(line) == most and free > most and any(e.jid not in line for e in events):
            # Whether a new run may begin depends on all waiters before it.
            free = window.free(need.limit)
            line = waiters.line(need.key, free)
        newcomers = [event for event in events if not waits_since(rows, event)]
        # Waiters are served in order, and new runs after all of them.
        ahead = set(line[:free])
        in_turn = [event for event in events if event.jid in ahead]
        begun = [*in_turn, *newcomers[: max(0, free - len(line))]]
        answers: dict[str, Answer] = {}
        if begun:
            window.take(len(begun))
            answers |= self._begin(begun, rows)
        known = {*line, *(event.jid for event in newcomers)} - {event.jid for event in begun}
        return answers | self._in_line.put_off(need, [e for e in events if e.jid in known], rows)

    def _begin(self, events: Sequence[Started], rows: Mapping[str, Known]) -> dict[str, Answer]:
        written = self._transitions.write_rows(events)
        begun = [event for event in events if event.jid in written]
        end_waits(self._transitions, begun, rows)
        return {event.jid: Answer(granted=True, lease=Held(())) for event in begun}


def _needs_a_rate(event: Started) -> bool:
    """Return whether a run needs only a rate limit."""
    return [need.kind for need in event.needs] == [RATE] and not keeps_newest(event.unique)
