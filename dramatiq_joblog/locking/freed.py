"""Who in this process wants to hear that a key may have become free."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Set as AbstractSet


class Freed:
    """Passes on which keys may have become free, to those that look after jobs that wait."""

    def __init__(self) -> None:
        self._listeners: tuple[Callable[[AbstractSet[str]], None], ...] = ()

    def listen(self, listener: Callable[[AbstractSet[str]], None]) -> None:
        """Call *listener* with the keys, on the thread that freed them: it must not wait."""
        self._listeners = (*self._listeners, listener)

    def ignore(self, listener: Callable[[AbstractSet[str]], None]) -> None:
        """Call *listener* no more."""
        self._listeners = tuple(known for known in self._listeners if known != listener)

    def note(self, keys: AbstractSet[str]) -> None:
        """Say that *keys* may have become free: what freed them is committed."""
        for listener in self._listeners:
            listener(keys)

    def forget(self) -> None:
        """Forget all listeners: they are those of the process that this one was forked from."""
        self._listeners = ()
