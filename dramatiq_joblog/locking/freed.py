"""Notifications in this process that a key may have become free."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Set as AbstractSet


class Freed:
    """Notifies listeners of keys that may have become free."""

    def __init__(self) -> None:
        self._listeners: tuple[Callable[[AbstractSet[str]], None], ...] = ()

    def listen(self, listener: Callable[[AbstractSet[str]], None]) -> None:
        """Call *listener* with the keys, on the thread that released them; it must not block."""
        self._listeners = (*self._listeners, listener)

    def ignore(self, listener: Callable[[AbstractSet[str]], None]) -> None:
        """Stop calling *listener*."""
        self._listeners = tuple(known for known in self._listeners if known != listener)

    def note(self, keys: AbstractSet[str]) -> None:
        """Notify the listeners that *keys* may have become free; call it after the commit."""
        for listener in self._listeners:
            listener(keys)

    def forget(self) -> None:
        """Remove all listeners, after a fork: they belong to the parent process."""
        self._listeners = ()
