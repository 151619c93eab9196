"""How long the runs of each actor lately took, and which end before more could be fetched.

Where all threads compute, most of a run's time is spent waiting for the interpreter.  Only the
shortest runs then show how long one takes by itself, and an earlier fetch would gain nothing.
"""

from __future__ import annotations

import time
from typing import NamedTuple

#: Seconds for which a message may wait for a thread after its start, as far as is known.
WITHIN = 0.01
#: A run of at most so many seconds takes less time than fetching messages.
BRIEF = 0.001
#: A shorter run changes an actor's longest by this part, and a longer run its shortest.
_SLOWLY, _MORE_SLOWLY = 1 / 8, 1 / 64


class _Times(NamedTuple):
    """How long the runs of an actor lately took, in seconds."""

    longest: float
    shortest: float


class RunTimes:
    """How long the runs of each actor lately took."""

    def __init__(self) -> None:
        self._times: dict[str, _Times] = {}
        self._core = CoreUse()

    def note(self, actor: str, seconds: float) -> None:
        """Note how long a run of an actor took."""
        times = self._times.get(actor)
        if times is None:
            self._times[actor] = _Times(seconds, seconds)
            return
        longest, shortest = times
        longer, shorter = seconds - longest, seconds - shortest
        self._times[actor] = _Times(
            longest + longer * (1 if longer > 0 else _SLOWLY),
            shortest + shorter * (1 if shorter < 0 else _MORE_SLOWLY),
        )

    def expected(self, actor: str) -> float | None:
        """Return the seconds that a run is expected to take at most; None if that is not known."""
        times = self._times.get(actor)
        return None if times is None else times.longest

    def are_brief(self, actors: set[str]) -> bool:
        """Return whether runs of *actors* end before more messages could be fetched.

        Runs that only wait for the interpreter do so too, as a fetch waits for it as well.
        """
        times = [self._times[actor] for actor in actors]
        if all(longest <= BRIEF for longest, _ in times):
            return True
        if not all(longest <= WITHIN and shortest <= BRIEF for longest, shortest in times):
            return False
        return self._core.is_busy()


#: From which share of a core on a process computes all the time, and below which no longer.
_BUSY, _NOT_BUSY = 0.9, 0.75
#: With a greater share, threads compute at the same time, outside the interpreter.
_SEVERAL = 1.25
#: Seconds over which the share is taken.
_OVER = 0.1


class CoreUse:
    """Whether the threads of this process have lately waited for the interpreter."""

    def __init__(self) -> None:
        self._is_busy = False
        #: When it was last looked at, in monotonic seconds, and the processor time until then.
        self._seen = time.monotonic(), time.process_time()

    def is_busy(self) -> bool:
        """Return whether this process has computed all the time, on one core."""
        now, (since, before) = time.monotonic(), self._seen
        if now >= since + _OVER:
            used = time.process_time()
            self._seen = now, used
            at_least = _NOT_BUSY if self._is_busy else _BUSY
            self._is_busy = at_least <= (used - before) / (now - since) <= _SEVERAL
        return self._is_busy
