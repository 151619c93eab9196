"""Critical sections and uniqueness: who may hold a key, decided by a unique index alone.

A key has a row for each of its slots.  A slot is free if nobody owns it, or if its lease has
run out by the database's clock.  The statements here are part of their caller's transaction.
"""

from __future__ import annotations

import inspect
import string
import threading
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from peewee import PostgresqlDatabase

from .clock import database_now
from .errors import ConfigurationError
from .models import to_millis
from .states import State
from .text import fold_jid

if TYPE_CHECKING:
    from collections.abc import Callable

    from peewee import Database

#: Milliseconds that a section stays held after the last sign of life of its holder.
DEFAULT_TTL = 60_000
#: Milliseconds that a uniqueness lasts at most, so that a message that vanished does not hold
#: up others for ever.
DEFAULT_UNIQUE_TTL = 24 * 3600 * 1000
#: Milliseconds that a waiter may be late before those behind it no longer wait for it.
PATIENCE = 5_000

SECTION, UNIQUE = "section", "unique"

_ON_CONFLICT = ("skip", "wait", "retry", "fail")
_ON_TIMEOUT = ("dead", "skip", "retry")
_UNTIL = ("started", "finished")


@dataclass(frozen=True)
class Exclusive:
    """A critical section that an actor's jobs run in: at most *limit* of one key at once.

    Example:
      >>> Exclusive("finance:{user_id}", on_conflict="wait", wait_for=600_000).limit
      1

    Parameters:
      key: A format string over the actor's parameters, or a callable that is given the job's
        arguments.
      limit: How many jobs may hold the key at once.
      on_conflict: What becomes of a job that finds the key held: ``"skip"`` drops it,
        ``"wait"`` puts it back until the key is free, ``"retry"`` is a failure like any other,
        ``"fail"`` is its death.
      wait_for: Milliseconds to wait at most; None for as long as it takes.
      on_timeout: What becomes of a job that waited too long: ``"dead"``, ``"skip"`` or
        ``"retry"``.
      ttl: Milliseconds that the key stays held if its holder vanishes.  It is renewed while
        the holder lives, and is no limit on the length of a job.

    Raises:
      ConfigurationError: If a value is not known or makes no sense.
    """

    key: str | Callable[..., str]
    limit: int = 1
    on_conflict: str = "skip"
    wait_for: int | None = None
    on_timeout: str = "dead"
    ttl: int = DEFAULT_TTL

    def __post_init__(self) -> None:
        _check_one_of("on_conflict", self.on_conflict, _ON_CONFLICT)
        _check_one_of("on_timeout", self.on_timeout, _ON_TIMEOUT)
        _check_positive("limit", self.limit, 1)
        _check_positive("ttl", self.ttl, 100)
        if self.wait_for is not None:
            _check_positive("wait_for", self.wait_for, 0)


@dataclass(frozen=True)
class Unique:
    """A key that one message at a time may have, from its ``send()`` on.

    Example:
      >>> Unique("import:{user_id}", until="started").ttl
      86400000

    Parameters:
      key: A format string over the actor's parameters, or a callable that is given the job's
        arguments.
      until: ``"started"`` or ``"finished"``, or None for the whole of *ttl*.
      ttl: Milliseconds after which the key is not unique any more, in any case.

    Raises:
      ConfigurationError: If a value is not known or makes no sense.
    """

    key: str | Callable[..., str]
    until: str | None = "finished"
    ttl: int = DEFAULT_UNIQUE_TTL

    def __post_init__(self) -> None:
        if self.until is not None:
            _check_one_of("until", self.until, _UNTIL)
        _check_positive("ttl", self.ttl, 100)


def key_maker(key: Any, function: Any, where: str) -> Callable[..., str]:
    """Return what makes the key of a job of an actor from the job's arguments.

    Raises:
      ConfigurationError: If *key* names what is none of the function's parameters.
    """
    if callable(key):
        return lambda *args, **kwargs: str(key(*args, **kwargs))
    if not isinstance(key, str) or not key:
        raise ConfigurationError(
            f"{where} has the key {key!r}: a format string or a callable is needed"
        )
    signature = inspect.signature(function)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    try:
        fields = [name for _, name, _, _ in string.Formatter().parse(key) if name is not None]
    except ValueError as e:
        raise ConfigurationError(f"{where} has the key {key!r}, which is no format: {e}") from e
    for name in fields:
        first = name.split(".")[0].split("[")[0]
        if first not in signature.parameters and not takes_any:
            raise ConfigurationError(
                f"{where} has the key {key!r}, and {first!r} is none of its parameters "
                f"({', '.join(signature.parameters) or 'it has none'})"
            )

    def make(*args: Any, **kwargs: Any) -> str:
        bound = signature.bind_partial(*args, **kwargs)
        bound.apply_defaults()
        named = dict(bound.arguments)
        for name, parameter in signature.parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                named |= named.pop(name, {})
        return key.format_map(named)

    return make


@dataclass
class Claim:
    """Who wants to hold what."""

    kind: str
    key: str
    owner: str
    token: str | None
    ttl: int
    process: str | None = None
    limit: int = 1
    #: Whether the run of the same owner that holds it is known to be over.
    reenter: bool = False


@dataclass(frozen=True)
class Holder:
    """Who holds a key, by the database's clock, in milliseconds since 1970."""

    owner: str
    since: int
    until: int


class Lease:
    """A key that is held by this process, for as long as it is renewed."""

    def __init__(self, key: str, token: str, fence: int, ttl: int, began: float) -> None:
        self.key = key
        self.token = token
        self.fence = fence
        self.ttl = ttl
        #: Monotonic, in seconds; counted from before the statement that took it.
        self.deadline = began + ttl / 1000
        #: Whether another has it.
        self.gone = False

    @property
    def lost(self) -> bool:
        """Whether another may hold the key by now."""
        return self.gone or time.monotonic() > self.deadline


class Locks:
    """The statements on the table of keys.

    Parameters:
      lock: The bound lock model.
      job: The bound job model, for those that wait.
    """

    def __init__(self, lock: Any, job: Any) -> None:
        self.lock = lock
        self.job = job
        self._database: Database = lock._meta.database
        self._now: str = database_now(self._database).sql
        self._guard = threading.Lock()
        #: What this process holds, by token.
        self._leases: dict[str, Lease] = {}
        #: Called with the milliseconds within which a lease that was taken must be renewed.
        self.renew_within: Callable[[int], None] = _nobody

    def take(self, claim: Claim) -> Lease | None:
        """Take a free slot of a key, or the one that its owner has already; None if there is none.

        The lease is renewed from now on, until it is released.
        """
        began = time.monotonic()
        for slot in self._slots(claim):
            fence = self._take_slot(claim, slot)
            if fence is not None:
                lease = Lease(claim.key, claim.token or "", fence, claim.ttl, began)
                if claim.token is not None and claim.kind == SECTION:
                    with self._guard:
                        self._leases[claim.token] = lease
                    self.renew_within(claim.ttl // 3)
                return lease
        return None

    def holder(self, kind: str, key: str) -> Holder | None:
        """Return who holds a key, the first of them."""
        lock = self.lock
        row = (
            lock.select(lock.owner, lock.acquired_at, lock.expires_at)
            .where(lock.kind == kind, lock.key == key, lock.owner.is_null(False))
            .order_by(lock.slot)
            .tuples()
            .first()
        )
        return None if row is None else Holder(row[0], to_millis(row[1]), to_millis(row[2]))

    def release(self, kind: str, key: str, owner: str, token: str | None) -> None:
        """Give up what *owner* holds, unless a later run of it holds it by now."""
        lock = self.lock
        mine = lock.token.is_null() | (lock.token == token)
        (
            lock.update(owner=None, token=None, process=None, expires_at=None)
            .where(lock.kind == kind, lock.key == key, lock.owner == owner, mine)
            .execute()
        )
        self.forget(token)

    def keep(self, key: str, owner: str, token: str, milliseconds: int) -> None:
        """Keep a section for its owner's next run, which begins within *milliseconds*."""
        lock = self.lock
        (
            lock.update(
                token=None, process=None, expires_at=database_now(self._database) + milliseconds
            )
            .where(
                lock.kind == SECTION,
                lock.key == key,
                lock.owner == owner,
                lock.token == token,
            )
            .execute()
        )
        self.forget(token)

    def confirm(self, key: str, owner: str, ttl: int) -> None:
        """Give a uniqueness its whole time: its message is in the broker."""
        lock = self.lock
        (
            lock.update(ttl=ttl, expires_at=database_now(self._database) + ttl)
            .where(lock.kind == UNIQUE, lock.key == key, lock.owner == owner)
            .execute()
        )

    def forget(self, token: str | None) -> None:
        """Renew a lease no longer."""
        if token is not None:
            with self._guard:
                self._leases.pop(token, None)

    def forget_all(self) -> None:
        """Renew nothing: this process was forked from the one that holds it."""
        self._guard = threading.Lock()
        self._leases = {}

    def renew(self) -> None:
        """Renew all that this process holds, in one statement."""
        with self._guard:
            leases = dict(self._leases)
        if not leases:
            return
        began = time.monotonic()
        lock = self.lock
        expires = database_now(self._database) + lock.ttl
        held = (
            lock.update(expires_at=expires)
            .where(
                lock.kind == SECTION,
                lock.key.in_([lease.key for lease in leases.values()]),
                lock.token.in_(list(leases)),
            )
            .returning(lock.token)
        )
        renewed = {row.token for row in held.execute()}
        for token, lease in leases.items():
            if token in renewed:
                lease.deadline = began + lease.ttl / 1000
            else:
                lease.gone = True

    def owns(self, key: str, owner: str) -> bool:
        """Tell whether a section is held for *owner*, whose lease is not over."""
        lock = self.lock
        return bool(
            lock.select()
            .where(
                lock.kind == SECTION,
                lock.key == key,
                lock.owner == owner,
                lock.expires_at > database_now(self._database),
            )
            .exists()
        )

    def ahead(self, key: str, jid: str, since: int | None) -> int:
        """Return how many wait for a section longer than *jid*, which waits *since*, and live."""
        job = self.job
        older = [
            job.state == State.WAITING,
            job.section == key,
            job.jid != jid,
            job.eta > database_now(self._database) - PATIENCE,
        ]
        if since is not None:
            older.append(job.waiting_since < since)
        return int(job.select().where(*older).count())

    def free(self, key: str, limit: int) -> int:
        """Return how many slots of a section are free."""
        lock = self.lock
        held = lock.select().where(
            lock.kind == SECTION,
            lock.key == key,
            lock.owner.is_null(False),
            lock.expires_at > database_now(self._database),
        )
        return limit - int(held.count())

    def now(self) -> int:
        """Return the database's time."""
        ((now,),) = self._database.execute_sql(f"SELECT {self._now}").fetchall()
        return int(now)

    def _slots(self, claim: Claim) -> list[int]:
        """Return the slots to try: the owner's own and no other, if there is one."""
        if claim.limit == 1:
            return [0]
        if isinstance(self._database, PostgresqlDatabase):
            # The fence grows by key, not by slot: one at a time may make it grow.
            self._database.execute_sql(
                "SELECT pg_advisory_xact_lock(hashtext(%s))", (f"{claim.kind}:{claim.key}",)
            )
        lock = self.lock
        own = (
            lock.select(lock.slot)
            .where(lock.kind == claim.kind, lock.key == claim.key, lock.owner == claim.owner)
            .tuples()
            .first()
        )
        return list(range(claim.limit)) if own is None else [own[0]]

    def _take_slot(self, claim: Claim, slot: int) -> int | None:
        """Take one slot if it is free, and return its fence: the unique index decides."""
        table = f'"{self.lock._meta.table_name}"'
        key = '"key"'
        values: list[Any] = [
            *(claim.kind, claim.key, slot, claim.owner, claim.token, claim.process, claim.ttl),
            claim.ttl,
            claim.reenter,
        ]
        fence = "held.fence + 1"
        first = "1"
        if claim.limit > 1:
            highest = f"SELECT coalesce(max(fence), 0) + 1 FROM {table} AS all_slots"
            param = self._database.param
            fence = first = f"({highest} WHERE all_slots.kind = {param} AND {key} = {param})"
            values[7:7] = [claim.kind, claim.key]
            values[-1:-1] = [claim.kind, claim.key]
        text = f"""
            INSERT INTO {table} AS held
                (kind, {key}, slot, owner, token, process, ttl, fence, acquired_at, expires_at)
            VALUES (?, ?, ?, ?, ?, ?, ?, {first}, {self._now}, {self._now} + ?)
            ON CONFLICT (kind, {key}, slot) DO UPDATE SET
                owner = excluded.owner, token = excluded.token, process = excluded.process,
                ttl = excluded.ttl, fence = {fence}, acquired_at = excluded.acquired_at,
                expires_at = excluded.expires_at
            WHERE held.owner IS NULL OR held.expires_at <= {self._now}
                OR (held.owner = excluded.owner AND (held.token IS NULL OR ?))
            RETURNING fence
        """
        cursor = self._database.execute_sql(text.replace("?", self._database.param), values)
        row = cursor.fetchone()
        return None if row is None else int(row[0])


def describe_holder(holder: Holder | None) -> str:
    """Say who holds a key, since when and until when."""
    if holder is None:
        return "was taken, and is free by now"
    return f"is held by {holder.owner} since {_time(holder.since)}, until {_time(holder.until)}"


def _time(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, timezone.utc).strftime("%H:%M:%S UTC")


def fold_key(key: str) -> str:
    """Return *key*, or a short stand-in for one that is too long for its column."""
    return fold_jid(key)


def _nobody(milliseconds: int) -> None:
    """Stand in for whoever renews."""


def _check_one_of(name: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigurationError(f"{name}={value!r} is not known; use one of {known}")


def _check_positive(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigurationError(f"{name}={value!r} must be a whole number of at least {least}")
