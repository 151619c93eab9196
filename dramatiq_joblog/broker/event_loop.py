"""The thread that runs the async actors of this process."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
from typing import TYPE_CHECKING

from dramatiq.asyncio import get_event_loop_thread

if TYPE_CHECKING:
    from collections.abc import Callable

#: Seconds to wait for an event loop that an actor may block.
_PATIENCE = 5.0


def call_on_event_loop(function: Callable[[], None]) -> None:
    """Call *function* on the event loop's thread, if there is one, and wait for its end."""
    thread = get_event_loop_thread()
    if thread is None or not thread.is_alive():
        return

    async def call() -> None:
        function()

    with contextlib.suppress(concurrent.futures.TimeoutError):
        asyncio.run_coroutine_threadsafe(call(), thread.loop).result(_PATIENCE)
