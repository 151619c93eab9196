"""The table of stories: every way a job can go, and the row that it must leave.

The same actors run on a test's worker threads and in real worker processes (``story_worker.py``),
with the middleware at each position in the broker's list.
"""

from __future__ import annotations

import random
import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import dramatiq
from dramatiq.errors import Retry
from dramatiq.middleware import (
    AsyncIO,
    CurrentMessage,
    Middleware,
    MiddlewareError,
    SkipMessage,
    default_middleware,
)

if TYPE_CHECKING:
    from collections.abc import Callable

#: A failed run: its attempt, its outcome and the class of its error.
Run = tuple[int, str, str | None]


@dataclass
class Story:
    """One story: the actor, how it is sent, and what the log must contain at the end."""

    fn: Callable[..., Any]
    state: str
    #: Actor options.
    options: dict[str, Any] = field(default_factory=dict)
    args: tuple[Any, ...] = ()
    #: Message options, such as ``delay``.
    send: dict[str, Any] = field(default_factory=dict)
    attempt: int = 1
    dead_reason: str | None = None
    skip_reason: str | None = None
    error_type: str | None = None
    error_message: str | None = None
    failures: list[Run] = field(default_factory=list)
    #: Whether its body ran, so that it has a start, a duration and a queue time.
    ran: bool = True


def attempt() -> int:
    """Return the number of this attempt, from Dramatiq alone."""
    return int(CurrentMessage.get_current_message().options.get("retries", 0)) + 1


def works() -> None:
    pass


async def works_async() -> None:
    pass


def breaks() -> None:
    raise ValueError("row 7 is broken")


async def breaks_async() -> None:
    raise ValueError("row 7 is broken")


def breaks_twice() -> None:
    if attempt() < 3:
        raise ValueError("row 7 is broken")


def comes_back_once() -> None:
    if attempt() < 2:
        raise Retry("another is in progress", delay=20)


def steps_aside() -> None:
    raise SkipMessage("closed account")


def runs_too_long() -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        time.sleep(0.001)  # lets the other greenlets run too, or no limit of gevent's is seen


def exits() -> None:
    raise SystemExit(3)


def takes_any(*args: Any, **kwargs: Any) -> None:
    pass


FAST = {"max_retries": 2, "min_backoff": 10, "max_backoff": 20}
BROKEN = {"error_type": "ValueError", "error_message": "row 7 is broken"}

STORIES: dict[str, Story] = {
    "finished": Story(works, "finished"),
    "finished_async": Story(works_async, "finished"),
    "finished_with_arguments": Story(takes_any, "finished", args=(7, "x")),
    "no_retries": Story(
        breaks,
        "dead",
        {"max_retries": 0},
        dead_reason="no_retries",
        failures=[(1, "dead", "ValueError")],
        **BROKEN,
    ),
    "no_retries_async": Story(
        breaks_async,
        "dead",
        {"max_retries": 0},
        dead_reason="no_retries",
        failures=[(1, "dead", "ValueError")],
        **BROKEN,
    ),
    "retried_then_finished": Story(
        breaks_twice,
        "finished",
        FAST,
        attempt=3,
        failures=[(1, "retried", "ValueError"), (2, "retried", "ValueError")],
    ),
    "retries_exhausted": Story(
        breaks,
        "dead",
        FAST,
        attempt=3,
        dead_reason="retries_exhausted",
        failures=[
            (1, "retried", "ValueError"),
            (2, "retried", "ValueError"),
            (3, "dead", "ValueError"),
        ],
        **BROKEN,
    ),
    "came_back": Story(
        comes_back_once, "finished", FAST, attempt=2, failures=[(1, "retried", "Retry")]
    ),
    "throws": Story(
        breaks,
        "dead",
        {**FAST, "throws": ValueError},
        dead_reason="throws",
        failures=[(1, "dead", "ValueError")],
        **BROKEN,
    ),
    "skipped_by_actor": Story(
        steps_aside,
        "skipped",
        FAST,
        skip_reason="actor: closed account",
        failures=[(1, "skipped", "SkipMessage")],
    ),
    "skipped_by_middleware": Story(
        works, "skipped", FAST, skip_reason="Gate: maintenance", ran=False
    ),
    "refused_by_middleware": Story(
        works,
        "dead",
        {"max_retries": 0},
        dead_reason="no_retries",
        error_type="MiddlewareError",
        error_message="no permit",
        failures=[(1, "dead", "MiddlewareError")],
        ran=False,
    ),
    "age_limit": Story(works, "dead", {"max_age": 1}, dead_reason="age_limit", ran=False),
    "time_limit": Story(
        runs_too_long,
        "dead",
        {"time_limit": 500, "max_retries": 0},
        dead_reason="no_retries",
        error_type="TimeLimitExceeded",
        error_message="",
        failures=[(1, "dead", "TimeLimitExceeded")],
    ),
    "exits": Story(
        exits,
        "dead",
        {"max_retries": 0},
        dead_reason="no_retries",
        error_type="SystemExit",
        error_message="3",
        failures=[(1, "dead", "SystemExit")],
    ),
    "delayed": Story(works, "finished", send={"delay": 50}),
    "delayed_then_retried": Story(
        breaks_twice,
        "finished",
        FAST,
        send={"delay": 30},
        attempt=3,
        failures=[(1, "retried", "ValueError"), (2, "retried", "ValueError")],
    ),
    "wrong_arguments": Story(
        works,
        "dead",
        {"max_retries": 0},
        args=(1,),
        dead_reason="no_retries",
        error_type="TypeError",
        failures=[(1, "dead", "TypeError")],
    ),
}


class Gate(Middleware):
    """A third-party middleware that skips or refuses messages by actor name."""

    def before_process_message(self, broker: Any, message: Any) -> None:
        if message.actor_name == "skipped_by_middleware":
            raise SkipMessage("maintenance")
        if message.actor_name == "refused_by_middleware":
            raise MiddlewareError("no permit")


class Lag(Middleware):
    """Makes each hook slow, so that code which relies on accidental order fails."""

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)

    def _pause(self, *args: Any, **kwargs: Any) -> None:
        time.sleep(self._random.random() * 0.01)

    after_enqueue = before_enqueue = _pause
    before_process_message = after_process_message = after_skip_message = _pause
    before_ack = after_ack = before_nack = after_nack = _pause


def middleware() -> list[Middleware]:
    """Return Dramatiq's middleware and that of the stories, without the log's."""
    return [
        *(m() for m in default_middleware),
        AsyncIO(),
        CurrentMessage(),
        Gate(),
        Lag(),
    ]


def declare(broker: dramatiq.Broker) -> dict[str, dramatiq.Actor[Any, Any]]:
    """Declare the actor of each story; return them by name."""
    return {
        name: dramatiq.actor(
            story.fn, actor_name=name, broker=broker, queue_name="stories", **story.options
        )
        for name, story in STORIES.items()
    }


def send_all(broker: dramatiq.Broker, actors: dict[str, Any]) -> dict[str, str]:
    """Send each story once, and one message without an actor; return the jids by story."""
    jids = {
        name: actors[name].send_with_options(args=story.args, **story.send).message_id
        for name, story in STORIES.items()
    }
    unknown = dramatiq.Message(
        queue_name="stories", actor_name="unknown", args=(), kwargs={}, options={}
    )
    jids["unknown_actor"] = broker.enqueue(unknown).message_id
    return jids


UNKNOWN_ACTOR = Story(
    works, "dead", dead_reason="unknown_actor", error_type="ActorNotFound", ran=False
)


def expected(name: str) -> dict[str, Any]:
    """Return what the log must contain about a story."""
    story = STORIES.get(name, UNKNOWN_ACTOR)
    return {
        "state": story.state,
        "attempt": story.attempt,
        "dead_reason": story.dead_reason,
        "skip_reason": story.skip_reason,
        "error_type": story.error_type,
        "failures": story.failures,
        "ran": story.ran,
    }


def observed(joblog: Any, jid: str) -> dict[str, Any]:
    """Return what the log contains about a job, in the form of :func:`expected`."""
    job = joblog.get(jid)
    return {
        "state": job.state,
        "attempt": job.attempt,
        "dead_reason": job.dead_reason,
        "skip_reason": job.skip_reason,
        "error_type": job.error_type,
        "failures": [(f.attempt, f.outcome, f.error_type) for f in job.failures],
        "ran": job.started_at is not None,
    }


def faults(job: Any) -> list[str]:
    """Return the faults in the times and the worker of an ended job."""
    ran = job.started_at is not None
    wrong = {
        "it has no end": job.finished_at is None,
        "it has an eta": job.eta is not None,
        "it has a note": job.note is not None,
        "its worker is not host:pid:thread": not re.fullmatch(r"[^:]+:\d+:\d+", job.worker or ""),
        "a duration without a run, or none with one": (job.duration is not None) != ran,
        "a queue time without a run, or none with one": (job.queue_time is not None) != ran,
        "it ended before it started": ran and job.started_at > job.finished_at,
        "it started before it was sent": ran and job.started_at < job.enqueued_at,
        "a failure without a traceback": any(not f.traceback for f in job.failures),
        "a failure that ended before it started": any(
            f.started_at and f.started_at > f.finished_at for f in job.failures
        ),
    }
    return [text for text, is_so in wrong.items() if is_so]
