"""How often to check the keys that jobs in this process wait for.

A key that stands still is looked at frequently only by the process that has the job which is
next: that alone can put it forward.  The others look now and then.  All look often once it moves.
"""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Milliseconds between two looks at a key that moves.
OFTEN = 50
#: Milliseconds between two looks at one that stands still, whose next job waits here.  A look
#: costs little, and to wake for it several times as much.
STILL = 75
#: Milliseconds between two looks at any other.
SELDOM = 500
#: Milliseconds that a key is looked at often after it has moved.
MOVING = 1_000
#: Milliseconds after which it is asked again whether the next one waits here.
NEAR_FOR = 5_000


@dataclass
class _Key:
    """What is known of a key."""

    #: When it is looked at next; monotonic, in seconds, as all these.
    due: float = 0.0
    #: What it was like at the last look: another says that it has moved.
    mark: object = None
    moving_until: float = 0.0
    #: Whether the next of its line waits here, and until when that is believed.
    near: bool = True
    near_until: float = 0.0


@dataclass
class Pace:
    """Plans when to look at each key."""

    _keys: dict[str, _Key] = field(default_factory=dict)
    #: Those that may be free, as others say on their threads.
    _wanted: set[str] = field(default_factory=set)
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def want(self, keys: Iterable[str]) -> None:
        """Look at *keys* at once; any thread may ask for that."""
        with self._guard:
            self._wanted.update(keys)

    def due(self, keys: Iterable[str]) -> list[str]:
        """Return those of *keys*, which are all that are waited for here, whose look is due."""
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
        """When the next look is due; monotonic, in seconds."""
        return min((state.due for state in self._keys.values()), default=math.inf)

    @property
    def is_moving(self) -> bool:
        """Whether a key that is waited for here has moved just now."""
        now = time.monotonic()
        return any(state.moving_until > now for state in self._keys.values())

    def asks_who_is_next(self, key: str, mark: object) -> bool:
        """Note what a key is like; return whether it is to be asked if the next waits here."""
        state, now = self._keys[key], time.monotonic()
        if mark != state.mark:
            state.mark, state.near_until = mark, 0.0
            state.moving_until = now + MOVING / 1000
        return state.moving_until <= now and state.near_until <= now

    def is_near(self, key: str, near: bool) -> None:
        """Note whether the next of a key's line waits here."""
        state = self._keys[key]
        state.near, state.near_until = near, time.monotonic() + NEAR_FOR / 1000

    def plan(self, key: str, within: float | None = None) -> None:
        """Plan the next look at a key: within so many milliseconds if something is due then."""
        state, now = self._keys[key], time.monotonic()
        pause: float = STILL if state.near else SELDOM
        if state.moving_until > now:
            pause = OFTEN
        if within is not None:
            pause = min(pause, max(OFTEN, within))
        state.due = now + pause / 1000
