"""How often to scan for waiting messages, and to poll the keys that they wait for.

An idle key is polled frequently only by the process that holds the next waiter, because only that
process can promote it; the others poll seldom.  All poll often while the key is active.
"""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Milliseconds between two scans for waiting messages: regular, and minimum after a new one.
SCAN_EVERY, SCAN_AGAIN = 1_000, 50
#: A scan, or a poll that promotes nothing, is followed by a pause this many times as long, to limit
#: CPU use.
REST = 20
#: Milliseconds between two polls of an active key.
OFTEN = 50
#: Milliseconds between two polls of an idle key whose next waiter is here.  A poll costs little; to
#: wake up for it costs several times as much.
STILL = 75
#: Milliseconds between two polls of any other key.
SELDOM = 500
#: Milliseconds that a key counts as active after a change.
MOVING = 1_000
#: Milliseconds until it is checked again whether the next waiter is here.
NEAR_FOR = 5_000


@dataclass
class _Key:
    """The polling state of a key."""

    #: When it is polled next; all times here are in monotonic seconds.
    due: float = 0.0
    #: Its usage at the last poll; a different one means that it has changed.
    mark: object = None
    moving_until: float = 0.0
    #: Whether its next waiter is here, and until when that is assumed.
    near: bool = True
    near_until: float = 0.0


@dataclass
class Pace:
    """Plans when to poll each key."""

    _keys: dict[str, _Key] = field(default_factory=dict)
    #: Keys that may be free, as reported by other threads.
    _wanted: set[str] = field(default_factory=set)
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def want(self, keys: Iterable[str]) -> None:
        """Make *keys* due at once; any thread may call this."""
        with self._guard:
            self._wanted.update(keys)

    def due(self, keys: Iterable[str]) -> list[str]:
        """Return those of *keys* that are due; *keys* are all keys with waiters here."""
        now = time.monotonic()
        with self._guard:
            wanted, self._wanted = self._wanted, set()
        known, self._keys = self._keys, {}
        due = []
        for key in keys:
            state = self._keys[key] = known.get(key) or _Key()
            if state.due <= now or key in wanted:
                due.append(key)
        return due

    @property
    def next_due(self) -> float:
        """When the next poll is due, in monotonic seconds."""
        return min((state.due for state in self._keys.values()), default=math.inf)

    @property
    def is_moving(self) -> bool:
        """Whether any key with waiters here is active."""
        now = time.monotonic()
        return any(state.moving_until > now for state in self._keys.values())

    def asks_who_is_next(self, key: str, mark: object) -> bool:
        """Record the usage of a key; return whether to check if its next waiter is here."""
        state, now = self._keys[key], time.monotonic()
        if mark != state.mark:
            state.mark, state.near_until = mark, 0.0
            state.moving_until = now + MOVING / 1000
        return state.moving_until <= now and state.near_until <= now

    def is_near(self, key: str, near: bool) -> None:
        """Record whether a key's next waiter is here."""
        state = self._keys[key]
        state.near, state.near_until = near, time.monotonic() + NEAR_FOR / 1000

    def plan(self, key: str, within: float | None = None) -> None:
        """Plan the next poll of a key, at the latest *within* milliseconds."""
        state, now = self._keys[key], time.monotonic()
        pause: float = STILL if state.near else SELDOM
        if state.moving_until > now:
            pause = OFTEN
        if within is not None:
            pause = min(pause, max(OFTEN, within))
        state.due = now + pause / 1000


class ScanPace:
    """Plans when to scan for waiting messages."""

    def __init__(self) -> None:
        #: Whether there are new messages, and when they came; all times are monotonic seconds.
        self._came, self._came_at = False, 0.0
        #: When the next regular scan is due, and the next at the earliest.
        self._due = self._again = 0.0

    def expect(self) -> bool:
        """Plan a scan soon, because a message is about to be added; any thread may call this.

        Returns:
          Whether none was planned.
        """
        self._came_at = time.monotonic()
        if self._came:
            return False
        self._came = True
        return True

    def soon(self) -> None:
        """Plan a scan soon, because messages may have been added."""
        self._came = True

    @property
    def next_due(self) -> float:
        """When to scan again, in monotonic seconds."""
        return self._again if self._came else self._due

    def begin(self) -> bool:
        """Begin a scan, and return True, if one is due."""
        if time.monotonic() < self.next_due:
            return False
        # A new message may not be in the consumer's queue yet.
        self._came = self._came_at > time.monotonic() - SCAN_AGAIN / 1000
        return True

    def end(self, took: float) -> None:
        """Plan the next scan, after one that took so many seconds of CPU."""
        now, rest = time.monotonic(), REST * took
        self._due = now + max(SCAN_EVERY / 1000, rest)
        self._again = now + max(SCAN_AGAIN / 1000, rest)
