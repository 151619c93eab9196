"""Events of jobs as frozen values, and the log's answers to a start."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from dramatiq_joblog.locking.admission import Newcomer
from dramatiq_joblog.locking.needs import needs_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dramatiq_joblog.locking.admission import Refusal
    from dramatiq_joblog.locking.leases import Held
    from dramatiq_joblog.locking.needs import Need


#: In place of the token of a run, on the row of a job that gave way: it never begins.
GAVE_WAY = "gave way"


@dataclass(frozen=True)
class Event:
    """Something that happened to a job, as plain values: column names to what is stored."""

    #: Names what happened, where events are kept as text.
    kind: ClassVar[str]

    #: The job's row as this event knows it.
    row: dict[str, Any]
    #: What the job needs before it may run, as its message carries it: see :func:`needs_of`.
    section: dict[str, Any] | None = field(default=None, kw_only=True)
    #: What the job is unique by: ``key``, ``until``, ``ttl`` and ``keep``.
    unique: dict[str, Any] | None = field(default=None, kw_only=True)
    #: Whether it was kept on disk, so that others may have been written before it.
    replayed: bool = field(default=False, kw_only=True, compare=False)

    @property
    def jid(self) -> str:
        """The job."""
        jid: str = self.row["jid"]
        return jid

    @property
    def needs(self) -> tuple[Need, ...]:
        """What the job needs before it may run."""
        return () if self.section is None else self._needs

    # Before Python 3.12 to look at one takes a lock.
    @cached_property
    def _needs(self) -> tuple[Need, ...]:
        return needs_of(self.section)


@dataclass(frozen=True)
class Enqueued(Event):
    """A message was sent, put back, or is due after its delay."""

    kind = "enqueue"


@dataclass(frozen=True)
class Started(Event):
    """A run is about to begin."""

    kind = "start"

    #: Whether the broker says that it has delivered the message before.
    redelivered: bool = False
    #: How many of its runs may lose their worker before it is dead; None for any number.
    max_interruptions: int | None = None
    #: Whether a job that has ended may run when its message is only delivered again; False for
    #: one that never runs again once it has finished.
    rerun: bool | None = None
    #: For one that needs a key: milliseconds within which its message must be looked at again,
    #: whatever it waits for; None for any time.
    comes_back_within: int | None = None
    #: Whether it only goes to the end of a line, where its message is held already.
    lines_up: bool = False
    #: For one that is replayed: its run ended with its process.
    cut_off: bool = field(default=False, compare=False)

    @property
    def is_begin(self) -> bool:
        """Whether its run needs a key, or must be the newest with one."""
        return self.section is not None or keeps_newest(self.unique)

    @property
    def may_line_up(self) -> bool:
        """Whether it may go to the end of a line unasked, as far as its message says."""
        if len(self.needs) != 1 or self.row["attempt"] > 1 or self.redelivered:
            return False
        [need] = self.needs
        waits = need.on_conflict == "wait" and need.wait_for != 0
        return waits and not keeps_newest(self.unique)

    @property
    def run(self) -> Newcomer:
        """The run, as one that wants what it needs."""
        return Newcomer(self.jid, self.row["token"], self.row["process"])

    def as_end(self, row: dict[str, Any]) -> Ended:
        """Return the end of what was to begin, which holds no section."""
        return Ended(row, unique=self.unique)


@dataclass(frozen=True)
class Ended(Event):
    """A run has ended, or a job without one."""

    kind = "end"

    #: The row of the run that did not finish.
    failure: dict[str, Any] | None = None
    #: What the run logged, as rows.
    lines: list[dict[str, Any]] | None = None
    #: The jid and token of its lines that are to go, and their first and last number.
    forget: Sequence[Any] | None = None
    #: The start of its run, if that may not have been written.
    start: Started | None = field(default=None, compare=False)


def keeps_newest(unique: dict[str, Any] | None) -> bool:
    """Return whether a message is unique in such a way that the newest is kept."""
    return unique is not None and unique.get("keep") == "last"


@dataclass(frozen=True)
class Answer:
    """What a start is answered, once what follows from it is committed."""

    #: Whether the run may go on.
    granted: bool
    #: What a run that may go on holds of the keys that it needs.
    lease: Held | None = None
    #: The state that the job of one that may not go on is in now.
    found: str | None = None
    #: What keeps it out.
    refusal: Refusal | None = None
    #: Milliseconds until its message may come back, if it is to.
    delay: int | None = None
    #: Whether a newer message took its place.
    gave_way: bool = False


#: To a run that needs no key.
GRANTED = Answer(granted=True)
#: To a run that needs a key, for as long as nobody knows whether it is free.
UNANSWERED = Answer(granted=False)

#: By their jobs.  Starts that are not in it may go on.
Answers: TypeAlias = "Mapping[str, Answer]"
