"""Admits a job: acquires all the keys that it needs, or none."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .holders import Holder, describe_holder
from .leases import Claim, Held
from .needs import RATE, SECTION

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from .limits import LimitSet
    from .locks import Locks
    from .needs import Need
    from .waiters import Place


@dataclass(frozen=True)
class Newcomer:
    """The run of a job that requests keys."""

    jid: str
    token: str
    process: str | None
    #: Whether an earlier run of the same job that still holds keys is known to be over.
    reenter: bool = False


@dataclass(frozen=True)
class Refusal:
    """Why a job's keys were refused."""

    #: The need that could not be met.
    need: Need
    #: Who holds the key or waits for it, since when and until when, as text.
    why: str
    holder: Holder | None = None
    #: The other keys that are reserved for the job while it waits for this one.
    reserved: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.need.kind} {self.need.key!r} {self.why}"


class Admission:
    """Acquires the keys that jobs need, in the caller's transaction.

    Parameters:
      locks: The statements on keys.
      atomic: Returns a transaction, or a savepoint in the open one.
    """

    def __init__(self, locks: Locks, atomic: Callable[[], AbstractContextManager[Any]]) -> None:
        self._locks = locks
        self._atomic = atomic

    def admit(self, needs: Sequence[Need], run: Newcomer, place: Place) -> Held | Refusal:
        """Acquire all keys that a job needs, if it is its turn; or return the refusal."""
        if not needs:
            return Held(())
        needs = self._by_limits_set(needs)
        if len(needs) == 1:
            held = self._take(needs, run, place)
        else:
            # All transactions lock keys in the same order, so that they cannot deadlock; the keys
            # stay locked until the end of the transaction.
            for need in sorted(needs, key=in_order):
                if need.kind == RATE:
                    self._locks.rates.keep_others_out(need.key)
                else:
                    self._locks.alone_with(claim_of(need, run))
            held = self._take_all(needs, run, place)
        return held

    def taken(self, needs: Sequence[Need], run: Newcomer) -> Held | None:
        """Return the leases of a run whose start was committed; None if it has lost one."""
        leases = []
        for need in needs:
            if need.kind == SECTION:
                lease = self._locks.taken(claim_of(need, run))
                if lease is None:
                    return None
                leases.append(lease)
        return Held(leases)

    def release(self, needs: Sequence[Need], run: Newcomer) -> None:
        """Release the sections of a run."""
        for need in needs:
            if need.kind == SECTION:
                self._locks.release(SECTION, need.key, run.jid, run.token)

    def _by_limits_set(self, needs: Sequence[Need]) -> list[Need]:
        """Return *needs* with limits set at run time in place of the code's."""
        limits = self._locks.limits.of([need.key for need in needs])
        return [replace(n, limit=limits[n.key]) if n.key in limits else n for n in needs]

    def _take_all(self, needs: Sequence[Need], run: Newcomer, place: Place) -> Held | Refusal:
        with self._atomic() as attempt:
            held = self._take(needs, run, place)
            if isinstance(held, Refusal):
                attempt.rollback()
                self._locks.leases.forget(run.token)
        return held

    def _take(self, needs: Sequence[Need], run: Newcomer, place: Place) -> Held | Refusal:
        leases = {}
        reserved: list[str] = []
        for need in sorted(needs, key=_in_line):
            if need.kind == RATE:
                if not self._start(need, run, place):
                    return self.refusal(need, run, place, reserved)
            else:
                lease = self._locks.take_in_turn(claim_of(need, run), place)
                if lease is None:
                    return self.refusal(need, run, place, reserved)
                leases[need.key] = lease
            reserved.append(need.key)
        return Held([leases[need.key] for need in needs if need.key in leases])

    def _start(self, need: Need, run: Newcomer, place: Place) -> bool:
        """Use a slot of a rate, unless waiters before *place* need all free ones."""
        free = self._locks.rates.allowance(need).free
        if free < 1:
            return False
        ahead = self._locks.waiters.count_ahead(need.key, run.jid, place, most=free)
        return ahead < free and self._locks.rates.take(need) > 0

    def refusal(
        self, need: Need, run: Newcomer, place: Place, reserved: Sequence[str] = ()
    ) -> Refusal:
        """Return the refusal of a need, with the keys that are reserved for the job."""
        limit = self._locks.limits.get(need.key)
        if need.limit < 1:
            return Refusal(need, _paused(limit), reserved=tuple(reserved))
        if need.kind == RATE:
            holder, why = self._before_its_start(need, run, place)
        else:
            holder = self._locks.blocker(claim_of(need, run), place)
            why = describe_holder(holder)
        if limit is not None:
            why = f"{why} ({limit})"
        return Refusal(need, why, holder, tuple(reserved))

    def _before_its_start(
        self, need: Need, run: Newcomer, place: Place
    ) -> tuple[Holder | None, str]:
        """Return the next waiter of a rate before *place*, or when the run may start."""
        # Its starts may date from before the database's clock was set back.
        self._locks.bound(RATE, need.key)
        waiter = self._locks.waiters.first_ahead(need.key, run.jid, place)
        if waiter is not None:
            holder = Holder(waiter.owner, waiter.since, None, waiter.by_hand)
            return holder, describe_holder(holder)
        due = self._locks.rates.allowance(need).due or 0
        return None, f"is used up: {need.limit} in {need.lasts} ms, the next in {due} ms"


def claim_of(need: Need, run: Newcomer) -> Claim:
    """Return the claim of a run on one key."""
    return Claim(
        need.kind,
        need.key,
        run.jid,
        run.token,
        need.lasts,
        process=run.process,
        limit=need.limit,
        reenter=run.reenter,
    )


def in_order(need: Need) -> tuple[bool, str]:
    """Return the sort key by which all transactions lock keys: sections, then rates."""
    return need.kind == RATE, need.key


def _in_line(need: Need) -> tuple[bool, int, str]:
    """Return the sort key by which a job waits for its keys: the lowest limit first.

    A reserved slot of a key with a low limit blocks few other jobs.  Waiting for a key with a
    high limit while holding one with a low limit would block many.
    """
    return need.kind != SECTION, need.limit, need.key


def _paused(limit: LimitSet | None) -> str:
    return "is paused: its limit is 0" if limit is None else f"is paused: {limit}"
