"""Starts that need keys: begun with all of them, or handled by their policy."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dramatiq_joblog.locking.admission import Admission, Refusal, claim_of
from dramatiq_joblog.locking.leases import Held
from dramatiq_joblog.locking.needs import SECTION
from dramatiq_joblog.locking.waiters import Place
from dramatiq_joblog.schema.models import to_millis
from dramatiq_joblog.states import FINAL, STARTABLE, DeadReason, Start, State

from .at_once import at_once
from .event_rows import freed_by, keys_of
from .events import UNANSWERED, Answer, Ended, Started, keeps_newest
from .heartbeat import has_ended
from .in_line import InLine
from .newest import Newest
from .rated import Rated
from .row_rules import KEPT_AT_START
from .transitions import DEAD_OF_INTERRUPTIONS
from .waits import abandon_waits, end_waits, fresh_waiters, policy_of, put_off

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from .events import Event
    from .judge import Known
    from .newest import Successor
    from .transitions import Transitions

#: Milliseconds for which the copy of a message is put back, if its job may be running.
COPY_DELAY = 5_000


class Sections:
    """Writes events, and begins runs that need keys once all are acquired.

    Parameters:
      transitions: The statements on jobs and on keys.
    """

    def __init__(self, transitions: Transitions) -> None:
        self.transitions = transitions
        self._locks = transitions.locks
        self._newest = Newest(transitions)
        self._admission = Admission(transitions.locks, transitions.atomic)
        self._rated = Rated(transitions)
        self._in_line = InLine(transitions)
        self._at_once = at_once(transitions)

    def write(self, events: Sequence[Event]) -> dict[str, Answer]:
        """Write *events*, each of a different job.

        Everything is committed when this returns.

        Raises:
          peewee.DatabaseError: The batch may be retried.

        Returns:
          The answers to starts, by jid; a start without an answer may run.
        """
        begins: list[Started] = []
        others: list[Event] = []
        for event in events:
            if isinstance(event, Started) and event.is_begin:
                begins.append(event)
            else:
                others.append(event)
        # Ends first: they release keys that the starts need.
        answers = self._write_others(others)
        freed = {key for event in others for key in freed_by(event)}
        if freed:
            self._locks.freed.note(freed)
        if begins:
            answers |= self._begin_all(sorted(begins, key=keys_of))
        return answers

    def _write_others(self, events: Sequence[Event]) -> dict[str, Answer]:
        """Write the events other than starts that need keys."""
        ends = [event for event in events if isinstance(event, Ended)]
        dropped = [event.jid for event in ends if event.section and not event.row.get("started_at")]
        if not dropped:
            return self.transitions.write(events)
        with self.transitions.atomic():
            answers = self.transitions.write(events)
            self._end_waits(dropped)
        return answers

    def _end_waits(self, jids: Sequence[str]) -> None:
        """End the waits of jobs that were dropped or failed while waiting."""
        job = self.transitions.job
        left = job.select().where(
            job.jid.in_(jids), job.waiting_since.is_null(False), job.state != State.WAITING
        )
        abandon_waits(self.transitions, list(left), self._locks.now())

    def _begin_all(self, begins: Sequence[Started]) -> dict[str, Answer]:
        try:
            answers = {} if self._at_once is None else self._at_once.begin(begins)
            left = [event for event in begins if event.jid not in answers]
            if not left:
                return answers
            with self.transitions.atomic():
                answers |= self._begin_together(left)
            for together in _together([event for event in left if event.jid not in answers]):
                with self.transitions.atomic():
                    if len(together) > 1:
                        # Lock in the order that all processes use, not in that of the keys.
                        self.transitions.locked_all([event.jid for event in together])
                    answers |= {event.jid: self._begin(event) for event in together}
        except BaseException:
            for event in begins:
                self._locks.leases.forget(event.row["token"])
            raise
        return answers

    def _begin_together(self, begins: Sequence[Started]) -> dict[str, Answer]:
        """Answer the starts that can share statements."""
        rows = self.transitions.locked_all([event.jid for event in begins])
        lined = [event for event in begins if event.lines_up]
        begins = [event for event in begins if not event.lines_up]
        answers = self._begin_undisputed(begins, rows) | self._rated.begin(begins, rows)
        answers |= self._in_line.join(lined, rows)
        for event in begins:
            if event.if_free and not _is_begun(event, rows.get(event.jid)):
                answers.setdefault(event.jid, UNANSWERED)
        return answers

    def _begin_undisputed(
        self, begins: Sequence[Started], rows: Mapping[str, Known]
    ) -> dict[str, Answer]:
        """Begin the runs whose sections are uncontended."""
        simple = [event for event in begins if _is_simple(event)]
        # A waiter for several keys may have some of them reserved.
        single = [event for event in simple if len(event.needs) == 1 and not event.if_free]
        waiters = fresh_waiters(self.transitions, single, rows)
        plain: dict[str, Started] = {}
        for event in simple:
            keys = [need.key for need in event.needs]
            if not plain.keys().isdisjoint(keys):
                continue
            if event.jid in waiters or self._is_plain(event, rows.get(event.jid)):
                plain |= dict.fromkeys(keys, event)
        if not plain:
            return {}
        wanted = {e.jid: e for e in plain.values()}.values()
        shut = self._shut(plain, waiters)
        return self._begin_those([event for event in wanted if event.jid not in shut], rows)

    def _shut(self, plain: Mapping[str, Started], waiters: set[str]) -> set[str]:
        """Return the jobs with contended keys; of *waiters*, those that are not next."""
        locks = self._locks
        disputed = locks.waiters.disputed(list(plain))
        limited = locks.limits.of(list(disputed)) if disputed else {}
        shut = set()
        for key in disputed:
            jid = plain[key].jid
            if key in limited or jid not in waiters or locks.waiters.line(key, 1) != [jid]:
                shut.add(jid)
        return shut

    def _begin_those(
        self, events: Sequence[Started], rows: Mapping[str, Known]
    ) -> dict[str, Answer]:
        """Begin those of *events*, all with different keys, that acquire all their keys."""
        leases = self._locks.take_all([claim_of(n, e.run) for e in events for n in e.needs])
        whole = [e for e in events if all(need.key in leases for need in e.needs)]
        written = self.transitions.write_rows(whole)
        begun = {event.jid: event for event in whole if event.jid in written}
        for event in events:
            if event.jid not in begun and any(need.key in leases for need in event.needs):
                # Another job holds one of its keys, or another run has just inserted its row.
                self._admission.release(event.needs, event.run)
        end_waits(self.transitions, begun.values(), rows)
        return {
            jid: Answer(granted=True, lease=Held([leases[need.key] for need in event.needs]))
            for jid, event in begun.items()
        }

    def _is_plain(self, event: Started, row: Any) -> bool:
        """Return whether a run may begin without checking earlier runs."""
        if row is None:
            return True
        if event.replayed:
            # Its time, and the outcome of the row's run, must be checked.
            return False
        may_begin = self.transitions.judge.verdict(event, row).start is Start.BEGIN
        has_run = row.state in FINAL or (row.state in STARTABLE and row.token is not None)
        return may_begin and not has_run and row.waiting_since is None

    def _begin(self, event: Started) -> Answer:
        """Begin a run with its keys, or write why it may not begin."""
        row = self.transitions.locked(event.jid)
        verdict = self.transitions.judge.verdict(event, row)
        if verdict.start is Start.REFUSE:
            return verdict.refused()
        if verdict.start is Start.KNOWN:
            # It was committed, but the reply was lost.
            lease = self._admission.taken(event.needs, event.run)
            if lease is None:
                return verdict.refused(delay=COPY_DELAY)
            return Answer(granted=True, lease=lease)
        reenter = verdict.start is Start.TAKE_OVER
        if reenter:
            if not self._is_over(row, event):
                # Two copies of a message never run at the same time, whatever the policy.
                return verdict.refused(delay=COPY_DELAY)
            # The earlier run is recorded, whatever happens to this one.
            if self.transitions.interruptions.close(event, row):
                self._admission.release(event.needs, replace(event.run, token=row.token))
                return DEAD_OF_INTERRUPTIONS
        return self._come_in(event, row, reenter=reenter)

    def _come_in(self, event: Started, row: Any, *, reenter: bool) -> Answer:
        """Begin a run that its job's row allows, if it acquires its keys."""
        place = self._place_of(event, row)
        is_newest = keeps_newest(event.unique) and not place.begun
        if is_newest:
            successor = self._newest.successor(event)
            if successor is not None:
                return self._give_way(event, row, successor)
        admitted = self._admission.admit(event.needs, replace(event.run, reenter=reenter), place)
        if isinstance(admitted, Refusal):
            return self._conflict(event, row, admitted, place)
        self.transitions.put(event, row)
        if is_newest:
            # Its sender may have been killed before it recorded that the message was sent.
            self._newest.sent((event.unique or {})["key"], event.jid)
        if place.since is not None:
            self._end_wait(event, place.since, self._locks.now())
        return Answer(granted=True, lease=admitted)

    def _give_way(self, event: Started, row: Any, successor: Successor) -> Answer:
        """Skip a superseded job, once its successor is in the broker."""
        if not successor.is_sent:
            # If sending the successor fails, this job is the newest again.
            return Answer(granted=False, delay=COPY_DELAY)
        self.transitions.put(event.as_end(self._newest.skipped(event, successor.jid)), row)
        if row is not None and row.waiting_since is not None:
            self._end_wait(event, to_millis(row.waiting_since), self._locks.now())
        return Answer(granted=False, found=State.SKIPPED.value, gave_way=True)

    def _end_wait(self, event: Started, since: int, now: int) -> None:
        self.transitions.kept.end_waiting(event.row, since, now)
        if len(event.needs) > 1:
            self._locks.reservations.leave([need.key for need in event.needs], event.jid)

    def _place_of(self, event: Started, row: Any) -> Place:
        """Return a run's position in the wait queue of its section."""
        since = None if row is None or row.waiting_since is None else to_millis(row.waiting_since)
        if since is not None:
            # It may date from before the database's clock was set back.
            since = min(since, self._locks.now())
        return Place(_has_begun(event, row), since, None if row is None else row.id)

    def _is_over(self, row: Any, event: Started) -> bool:
        """Return whether the open run of a job is over, or its lease has expired."""
        keys = [need.key for need in event.needs if need.kind == SECTION]
        if not keys:
            # It blocks no one, not even another run of its own job.
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
            # A run does not rely on its lease for longer than the heartbeat timeout of its process.
            lasts = lease.ttl if process is None else min(lease.ttl, process.timeout)
            renewed_at = to_millis(lease.expires_at) - lease.ttl
            if renewed_at + lasts > self._locks.now():
                return False
        return True

    def _conflict(self, event: Started, row: Any, refusal: Refusal, place: Place) -> Answer:
        """Apply the policy to a run whose keys are refused."""
        now = self._locks.now()
        since = now if place.since is None else place.since
        policy, left = policy_of(refusal.need, place, now - since)
        timed_out = left is not None and left <= 0
        found = delay = None
        if policy != "retry":
            values = event.row | {"queue_time": None, "updated_at": now}
            values["started_at"] = to_millis(row.started_at) if _has_run(row) else None
            values["section"] = refusal.need.key
            if policy == "wait":
                columns, delay = put_off(event, since, now, left)
                values |= columns
                if row is not None:
                    # Keep the results of an earlier run readable.
                    values |= {name: getattr(row, name) for name in KEPT_AT_START}
            else:
                values |= {"eta": None, "finished_at": now}
                values |= _dropped(policy, str(refusal), timed_out=timed_out)
            found = values["state"]
            self.transitions.put(event.as_end(values), row)
        if timed_out:
            # The next attempt has the full waiting time again.
            self._end_wait(event, since, now)
        elif policy == "wait" and len(event.needs) > 1:
            self._locks.reservations.leave([need.key for need in event.needs], event.jid)
            self._locks.reservations.keep(refusal.reserved, event.jid)
        return Answer(granted=False, found=found, refusal=refusal, delay=delay)


def _is_simple(event: Started) -> bool:
    """Return whether a run needs only exclusive sections."""
    if not event.needs or keeps_newest(event.unique):
        return False
    return all(need.kind == SECTION and need.limit == 1 for need in event.needs)


def _is_begun(event: Started, row: Known | None) -> bool:
    """Return whether a start was committed before, by a statement whose reply was lost."""
    return row is not None and row.token == event.row["token"]


def _together(events: Sequence[Started]) -> Iterator[list[Started]]:
    """Yield groups of runs that may begin in one transaction; keys are locked in order of name.

    A run that needs several keys has a transaction of its own.
    """
    yield from ([event] for event in events if len(event.needs) > 1)
    single = [event for event in events if len(event.needs) <= 1]
    if single:
        yield single


def _dropped(policy: str, taken: str, *, timed_out: bool) -> dict[str, Any]:
    """Return the columns of a job whose keys are refused, and that does not wait."""
    if policy == "skip":
        return {"state": State.SKIPPED.value, "skip_reason": taken}
    return {
        "state": State.DEAD.value,
        "dead_reason": (DeadReason.WAIT_TIMEOUT if timed_out else DeadReason.CONFLICT).value,
        "error_type": "LockNotAcquired",
        "error_message": taken,
    }


def _has_run(row: Any) -> bool:
    """Return whether an earlier run of a job executed its body without finishing."""
    if row is None or row.started_at is None or row.state in FINAL:
        return False
    # A run that finished and enqueued its own message again left nothing half done.
    return row.state not in (State.ENQUEUED, State.DELAYED) or row.error_type is not None


def _has_begun(event: Started, row: Any) -> bool:
    """Return whether a run continues the work of an earlier one."""
    if row is None:
        # There is no row, and a retry must not be dropped on suspicion.
        return bool(event.row["attempt"] > 1)
    return _has_run(row)
