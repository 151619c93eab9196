"""A start that needs keys: taken with all of them, or what becomes of it without."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dramatiq_joblog.locking.admission import Admission, Refusal, claim_of
from dramatiq_joblog.locking.locks import Held
from dramatiq_joblog.locking.needs import SECTION
from dramatiq_joblog.locking.waiters import ATTENDED, COMES_BACK, Place
from dramatiq_joblog.schema.models import to_millis
from dramatiq_joblog.states import FINAL, STARTABLE, DeadReason, Start, State

from .heartbeat import has_ended
from .newest import Newest, keeps_newest
from .transitions import freed_by, keys_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dramatiq_joblog.locking.needs import Need

    from .transitions import Event, Transitions

#: Milliseconds until a copy of a message comes back whose job may be running.
COPY_DELAY = 5_000


class Sections:
    """Writes events, and begins those runs that need keys with all of them.

    Parameters:
      transitions: The statements on jobs and on keys.
    """

    def __init__(self, transitions: Transitions) -> None:
        self.transitions = transitions
        self._locks = transitions.locks
        self._newest = Newest(transitions)
        self._admission = Admission(transitions.locks, transitions.atomic)

    def write(self, events: Sequence[Event]) -> None:
        """Write *events*, which are of different jobs, and answer the starts among them.

        Everything is committed when this returns.

        Raises:
          peewee.DatabaseError: It may be written again.
        """
        begins = [e for e in events if e.is_begin]
        # What ends now frees what begins now.
        self._write_others([e for e in events if not e.is_begin])
        freed = {key for event in events for key in freed_by(event)}
        if freed:
            self._locks.freed(freed)
        if begins:
            self._begin_all(begins)

    def _write_others(self, events: Sequence[Event]) -> None:
        """Write what is no start in a section."""
        dropped = [
            e for e in events if e.kind == "end" and e.section and not e.row.get("started_at")
        ]
        if not dropped:
            self.transitions.write(events)
            return
        with self.transitions.atomic():
            self.transitions.write(events)
            self._end_waits([event.jid for event in dropped])

    def _end_waits(self, jids: Sequence[str]) -> None:
        """End the waits of jobs that were dropped, or failed, before they came in."""
        job = self.transitions.job
        left = job.select().where(
            job.jid.in_(jids), job.waiting_since.is_null(False), job.state != State.WAITING
        )
        now = self._locks.now()
        for row in list(left):
            waiter = {name: getattr(row, name) for name in ("jid", "attempt", "worker")}
            self.transitions.end_waiting(waiter, to_millis(row.waiting_since), now)

    def _begin_all(self, begins: Sequence[Event]) -> None:
        try:
            with self.transitions.atomic():
                left = self._begin_undisputed(sorted(begins, key=keys_of))
            for together in _together(left):
                with self.transitions.atomic():
                    for event in together:
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
            if _is_simple(event) and self._is_plain(event, rows.get(event.jid)):
                plain.setdefault(event.needs[0].key, event)
        disputed = self._locks.waiters.disputed(list(plain)) if plain else set()
        wanted = [event for key, event in plain.items() if key not in disputed]
        leases = self._locks.take_all([claim_of(e.needs[0], e.run) for e in wanted])
        begun = [event for event in wanted if event.row["token"] in leases]
        written = self.transitions.begin_all(begun)
        for event in begun:
            if event.jid in written:
                event.granted, event.lease = True, Held([leases[event.row["token"]]])
            else:
                # Its row was only just made, by another run.
                self._admission.release(event.needs, event.run)
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
        has_run = row.state in FINAL or (row.state in STARTABLE and row.token is not None)
        return may_begin and not has_run and row.waiting_since is None

    def _begin(self, event: Event) -> None:
        """Begin a run and take its section, or write why not."""
        row = self.transitions.locked(event.jid)
        verdict = self.transitions.judge(event, row)
        run = replace(event.run, reenter=verdict is Start.TAKE_OVER)
        if verdict is Start.KNOWN:
            # It was committed, and the answer did not arrive.
            event.lease = self._admission.taken(event.needs, run)
            event.granted = event.lease is not None
            event.delay = None if event.granted else COPY_DELAY
        if verdict in (Start.KNOWN, Start.REFUSE):
            return
        if verdict is Start.TAKE_OVER:
            if not self._is_over(row, event):
                # Two copies of one message never run side by side; this is not for the policy.
                event.delay = COPY_DELAY
                return
            # Whatever becomes of this run: the one before it is kept.
            if self.transitions.close(event, row):
                self._admission.release(event.needs, replace(run, token=row.token))
                return
        place = self._place_of(event, row)
        if keeps_newest(event.unique) and not place.begun and self._gives_way(event, row):
            return
        answer = self._admission.admit(event.needs, run, place)
        if isinstance(answer, Refusal):
            self._conflict(event, row, answer, place)
            return
        event.granted, event.lease = True, answer
        self.transitions.put(event, row)
        if place.since is not None:
            self._end_wait(event, place.since, self._locks.now())

    def _gives_way(self, event: Event, row: Any) -> bool:
        """Skip a job that a newer one took the place of, and return whether it is so."""
        successor = self._newest.successor(event)
        if successor is None:
            return False
        owner, is_sent = successor
        if not is_sent:
            # Should that fail, this one is the newest again.
            event.delay = COPY_DELAY
            return True
        event.found, event.gave_way = State.SKIPPED.value, True
        self.transitions.put(event.as_end(self._newest.skipped(event, owner)), row)
        if row is not None and row.waiting_since is not None:
            self._end_wait(event, to_millis(row.waiting_since), self._locks.now())
        return True

    def _end_wait(self, event: Event, since: int, now: int) -> None:
        self.transitions.end_waiting(event.row, since, now)
        if len(event.needs) > 1:
            self._locks.waiters.leave([need.key for need in event.needs], event.jid)

    def _place_of(self, event: Event, row: Any) -> Place:
        """Return the place of a run in the line of its section."""
        since = None if row is None or row.waiting_since is None else to_millis(row.waiting_since)
        if since is not None:
            # It may be of before the database's clock went back.
            since = min(since, self._locks.now())
        return Place(_has_begun(event, row), since)

    def _is_over(self, row: Any, event: Event) -> bool:
        """Tell whether the open run of a job is over, or knows itself that it may be taken for."""
        keys = [need.key for need in event.needs if need.kind == SECTION]
        if not keys:
            # It keeps nobody out, also not another run of its own job.
            return True
        worker, lock = self.transitions.worker, self._locks.lock
        process = worker.get_or_none(worker.process == row.process) if row.process else None
        if process is not None and has_ended(process):
            return True
        held = lock.select().where(
            *(lock.kind == SECTION, lock.key.in_(keys)),
            *(lock.owner == row.jid, lock.token == row.token),
        )
        for lease in held:
            # A run does not trust its lease for longer than its process may be silent.
            lasts = lease.ttl if process is None else min(lease.ttl, process.timeout)
            renewed_at = to_millis(lease.expires_at) - lease.ttl
            if renewed_at + lasts > self._locks.now():
                return False
        return True

    def _conflict(self, event: Event, row: Any, refusal: Refusal, place: Place) -> None:
        """Write what becomes of a run that does not come in."""
        event.refusal = refusal
        now = self._locks.now()
        since = now if place.since is None else place.since
        policy, left = _policy(refusal.need, place, now - since)
        timed_out = left is not None and left <= 0
        if policy == "retry":
            event.found = None
        else:
            values = event.row | {"queue_time": None, "updated_at": now}
            values["started_at"] = to_millis(row.started_at) if _has_run(row) else None
            values["section"] = refusal.need.key
            if policy == "wait":
                values |= self._waiting(event, row, now, left) | {"waiting_since": since}
            else:
                values |= {"eta": None, "finished_at": now}
                values |= _dropped(policy, str(refusal), timed_out=timed_out)
            event.found = values["state"]
            self.transitions.put(event.as_end(values), row)
        if timed_out:
            # Its next attempt may wait as long again.
            self._end_wait(event, since, now)
        elif policy == "wait" and len(event.needs) > 1:
            self._locks.waiters.leave([need.key for need in event.needs], event.jid)
            self._locks.waiters.keep(refusal.reserved, event.jid)

    @staticmethod
    def _waiting(event: Event, row: Any, now: int, left: int | None) -> dict[str, Any]:
        """Put a run off, and return the columns of a job that waits."""
        # It is put forward once its section is free; by itself it comes only now and then.
        delay = round(COMES_BACK * random.uniform(0.8, 1.0))  # noqa: S311
        for latest in (left, event.comes_back_within):
            delay = delay if latest is None else min(delay, latest)
        event.delay = max(1, delay)
        values = {"state": State.WAITING.value, "eta": now + min(event.delay, ATTENDED)}
        if row is not None:
            # What an earlier run left stays to be read.
            for name in ("duration", "error_message", "error_type"):
                values[name] = getattr(row, name)
        return values


def _is_simple(event: Event) -> bool:
    """Tell whether all that a run needs is a section that one at a time may be in."""
    needs = event.needs
    if keeps_newest(event.unique):
        return False
    return len(needs) == 1 and needs[0].kind == SECTION and needs[0].limit == 1


def _together(events: Sequence[Event]) -> Iterator[list[Event]]:
    """Yield runs that may begin in one transaction: keys are come to in the order of their names.

    One that needs several has a transaction of its own.
    """
    yield from ([event] for event in events if len(event.needs) > 1)
    single = [event for event in events if len(event.needs) <= 1]
    if single:
        yield single


def _policy(need: Need, place: Place, waited: int) -> tuple[str, int | None]:
    """Return what becomes of a job that does not come in, and how long it may wait yet."""
    if need.on_conflict == "wait" and need.wait_for is not None:
        left = need.wait_for - waited
        return ("wait" if left > 0 else need.on_timeout), left
    # What is half done is neither dropped nor fails: it waits, whatever its policy.
    return ("wait" if place.begun else need.on_conflict), None


def _dropped(policy: str, taken: str, *, timed_out: bool) -> dict[str, Any]:
    """Return the columns of a job that does not come in, and does not wait."""
    if policy == "skip":
        return {"state": State.SKIPPED.value, "skip_reason": taken}
    return {
        "state": State.DEAD.value,
        "dead_reason": (DeadReason.WAIT_TIMEOUT if timed_out else DeadReason.CONFLICT).value,
        "error_type": "LockNotAcquired",
        "error_message": taken,
    }


def _has_run(row: Any) -> bool:
    """Tell whether a job that goes on was in its body before, and did not come to its end."""
    if row is None or row.started_at is None or row.state in FINAL:
        return False
    # A run that ended well, and enqueued its own message again, left nothing half done.
    return row.state not in (State.ENQUEUED, State.DELAYED) or row.error_type is not None


def _has_begun(event: Event, row: Any) -> bool:
    """Tell whether a run goes on with what an earlier one has begun."""
    if row is None:
        # The log does not know; a retry is not dropped on a suspicion.
        return bool(event.row["attempt"] > 1)
    return _has_run(row)
