"""A start in a critical section: taken with the section, or what becomes of it without."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from dramatiq_joblog.locking.locks import SECTION, Claim, describe_holder
from dramatiq_joblog.schema.models import to_millis
from dramatiq_joblog.states import FINAL, DeadReason, Start, State

from .heartbeat import has_ended
from .transitions import keys_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .transitions import Event, Transitions

#: Milliseconds until a waiter comes back, for each that waits before it and for itself; at most.
TURN, TURN_AT_MOST = 250, 10_000
#: Milliseconds until a copy of a message comes back whose job may be running.
COPY_DELAY = 5_000


class Sections:
    """Writes events, and begins those runs that have a section in it.

    Parameters:
      transitions: The statements on jobs and on keys.
    """

    def __init__(self, transitions: Transitions) -> None:
        self.transitions = transitions
        self._locks = transitions.locks

    def write(self, events: Sequence[Event]) -> None:
        """Write *events*, which are of different jobs, and answer the starts among them.

        Everything is committed when this returns.

        Raises:
          peewee.DatabaseError: It may be written again.
        """
        begins = [e for e in events if e.is_begin]
        # What ends now frees what begins now.
        self.transitions.write([e for e in events if not e.is_begin])
        if any(e.section is not None and e.kind == "end" for e in events):
            self._locks.freed()
        if begins:
            self._begin_all(begins)

    def _begin_all(self, begins: Sequence[Event]) -> None:
        try:
            with self.transitions.atomic():
                left = self._begin_undisputed(sorted(begins, key=keys_of))
            if left:
                with self.transitions.atomic():
                    for event in left:
                        self._begin(event)
        except BaseException:
            for event in begins:
                event.unanswer()
                self._locks.forget(event.row["token"])
            raise

    def _begin_undisputed(self, begins: Sequence[Event]) -> list[Event]:
        """Begin the runs whose section nobody else wants, all in the same few statements.

        Returns:
          The others.
        """
        rows = self.transitions.locked_all([event.jid for event in begins])
        plain: dict[str, Event] = {}
        for event in begins:
            section: Any = event.section
            if section["limit"] == 1 and self._is_plain(event, rows.get(event.jid)):
                plain.setdefault(section["key"], event)
        waited_for = self._locks.waited_for(list(plain)) if plain else set()
        wanted = [event for key, event in plain.items() if key not in waited_for]
        leases = self._locks.take_all([self._claim(event, reenter=False) for event in wanted])
        begun = [event for event in wanted if event.row["token"] in leases]
        written = self.transitions.begin_all(begun)
        for event in begun:
            if event.jid in written:
                event.granted, event.lease = True, leases[event.row["token"]]
            else:
                # Its row was only just made, by another run.
                key = event.section["key"]  # type: ignore[index]
                self._locks.release(SECTION, key, event.jid, event.row["token"])
        return [event for event in begins if not event.granted]

    def _is_plain(self, event: Event, row: Any) -> bool:
        """Tell whether a run may begin without a look at what was before."""
        if row is None:
            return True
        if event.replayed:
            # When its run was, and what became of that of the row, must be known.
            return False
        may_begin = self.transitions.judge(event, row) is Start.BEGIN
        event.found = None
        return may_begin and row.state not in FINAL and row.waiting_since is None

    def _begin(self, event: Event) -> None:
        """Begin a run and take its section, or write why not."""
        section: Any = event.section
        row = self.transitions.locked(event.jid)
        verdict = self.transitions.judge(event, row)
        claim = self._claim(event, reenter=verdict is Start.TAKE_OVER)
        if verdict is Start.KNOWN:
            # It was committed, and the answer did not arrive.
            event.lease = self._locks.taken(claim)
            event.granted = event.lease is not None
            event.delay = None if event.granted else COPY_DELAY
        if verdict in (Start.KNOWN, Start.REFUSE):
            return
        if verdict is Start.TAKE_OVER:
            if not self._is_over(row, section["key"]):
                # Two copies of one message never run side by side; this is not for the policy.
                event.delay = COPY_DELAY
                return
            # Whatever becomes of this run: the one before it is kept.
            if self.transitions.close(event, row):
                self._locks.release(SECTION, section["key"], event.jid, row.token)
                return
        since = None if row is None or row.waiting_since is None else to_millis(row.waiting_since)
        waiters = 0
        if section["on_conflict"] == "wait" and not self._locks.owns(section["key"], event.jid):
            waiters = self._locks.ahead(
                section["key"], event.jid, since, most=section["limit"] + TURN_AT_MOST // TURN
            )
        if not waiters or waiters < self._locks.free(section["key"], section["limit"]):
            event.lease = self._locks.take(claim)
        if event.lease is None:
            self._conflict(event, row, since, waiters)
            return
        event.granted = True
        self.transitions.put(event, row)
        if since is not None:
            self.transitions.end_waiting(event.row, since, self._locks.now())

    @staticmethod
    def _claim(event: Event, *, reenter: bool) -> Claim:
        section: Any = event.section
        return Claim(
            SECTION,
            section["key"],
            event.jid,
            event.row["token"],
            section["ttl"],
            process=event.row["process"],
            limit=section["limit"],
            reenter=reenter,
        )

    def _is_over(self, row: Any, key: str) -> bool:
        """Tell whether the open run of a job is over, or knows itself that it may be taken for."""
        worker, lock = self.transitions.worker, self._locks.lock
        process = worker.get_or_none(worker.process == row.process) if row.process else None
        if process is not None and has_ended(process):
            return True
        held = lock.select().where(
            lock.kind == SECTION, lock.key == key, lock.owner == row.jid, lock.token == row.token
        )
        for lease in held:
            # A run does not trust its lease for longer than its process may be silent.
            lasts = lease.ttl if process is None else min(lease.ttl, process.timeout)
            renewed_at = to_millis(lease.expires_at) - lease.ttl
            if renewed_at + lasts > self._locks.now():
                return False
        return True

    def _conflict(self, event: Event, row: Any, since: int | None, waiters: int) -> None:
        section: Any = event.section
        event.holder = self._locks.holder(SECTION, section["key"])
        event.taken = f"section {section['key']!r} {describe_holder(event.holder)}"
        policy, timed_out = section["on_conflict"], False
        now = self._locks.now()
        since = now if since is None else since
        if policy == "wait" and section["wait_for"] is not None:
            left = section["wait_for"] - (now - since)
            if left <= 0:
                policy, timed_out = section["on_timeout"], True
        if policy == "retry":
            event.found = None
            if timed_out:
                # Its next attempt may wait as long again.
                self.transitions.end_waiting(event.row, since, self._locks.now())
            return
        values = event.row | {"started_at": None, "queue_time": None, "updated_at": now}
        if policy == "wait":
            # The first of the waiters looks often, and each behind it less so.
            delay = min(TURN * (waiters + 1), TURN_AT_MOST)
            delay = round(delay * random.uniform(0.8, 1.2))  # noqa: S311
            if section["wait_for"] is not None:
                delay = min(delay, max(left, 1))
            event.delay = delay
            values |= {"state": State.WAITING.value, "eta": now + delay, "waiting_since": since}
        else:
            values |= {"finished_at": now, "eta": None}
            if policy == "skip":
                values |= {"state": State.SKIPPED.value, "skip_reason": event.taken}
            else:
                reason = DeadReason.WAIT_TIMEOUT if timed_out else DeadReason.CONFLICT
                values |= {"state": State.DEAD.value, "dead_reason": reason.value}
                values |= {"error_type": "LockNotAcquired", "error_message": event.taken}
        event.found = values["state"]
        if row is not None and policy == "wait":
            # What an earlier run left stays to be read.
            values |= {name: getattr(row, name) for name in ("error_type", "error_message")}
            values["duration"] = row.duration
        self.transitions.put(event.as_end(values), row)
        if timed_out:
            self.transitions.end_waiting(event.row, since, self._locks.now())
