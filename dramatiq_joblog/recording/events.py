"""Job events as frozen values, and the log's answers to a start."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from dramatiq_joblog.locking.admission import Newcomer
from dramatiq_joblog.locking.needs import needs_of
from dramatiq_joblog.states import State

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dramatiq_joblog.locking.admission import Refusal
    from dramatiq_joblog.locking.leases import Held
    from dramatiq_joblog.locking.needs import Need


#: Replaces the token on the row of a superseded job, which never runs.
GAVE_WAY = "gave way"


@dataclass(frozen=True)
class Event:
    """Something that happened to a job, as column values."""

    #: The name of this kind of event in the spool.
    kind: ClassVar[str]

    #: The columns of the job's row that this event sets, by name.
    row: dict[str, Any]
    #: The keys that the job needs, as stored in its message; see :func:`needs_of`.
    section: dict[str, Any] | None = field(default=None, kw_only=True)
    #: The job's uniqueness: ``key``, ``until``, ``ttl`` (milliseconds) and ``keep``.
    unique: dict[str, Any] | None = field(default=None, kw_only=True)
    #: Whether it comes from the spool, so that later events may have been written first.
    replayed: bool = field(default=False, kw_only=True, compare=False)

    @property
    def jid(self) -> str:
        """The job's jid."""
        jid: str = self.row["jid"]
        return jid

    @property
    def needs(self) -> tuple[Need, ...]:
        """The keys that the job needs before it may run."""
        return () if self.section is None else self._needs

    # Before Python 3.12, reading a cached_property takes a lock.
    @cached_property
    def _needs(self) -> tuple[Need, ...]:
        return needs_of(self.section)


@dataclass(frozen=True)
class Enqueued(Event):
    """A message was enqueued, again or for the first time, or its delay has ended."""

    kind = "enqueue"


@dataclass(frozen=True)
class Started(Event):
    """A run is about to begin."""

    kind = "start"

    #: Whether the broker marks the message as redelivered.
    redelivered: bool = False
    #: How many runs may be interrupted before the job is dead; None for no limit.
    max_interruptions: int | None = None
    #: Whether a redelivery may run a job that has ended; False if the job never runs again once
    #: it has finished.
    rerun: bool | None = None
    #: For a job that needs a key: the maximum delay of its message while it waits, in
    #: milliseconds; None for no maximum.
    comes_back_within: int | None = None
    #: Whether it only joins the end of a wait queue; this process already holds its message.
    lines_up: bool = False
    #: Whether it only begins if its key is free: otherwise nothing is written, and it asks again.
    if_free: bool = False
    #: For a replayed start: whether its run ended with its process.
    cut_off: bool = field(default=False, compare=False)

    @property
    def is_begin(self) -> bool:
        """Whether its run needs a key, or must be the newest job with its unique key."""
        return self.section is not None or keeps_newest(self.unique)

    @property
    def may_line_up(self) -> bool:
        """Whether its message allows it to join the end of a wait queue without a check."""
        if len(self.needs) != 1 or self.row["attempt"] > 1 or self.redelivered:
            return False
        [need] = self.needs
        waits = need.on_conflict == "wait" and need.wait_for != 0
        return waits and not keeps_newest(self.unique)

    @property
    def run(self) -> Newcomer:
        """The run, as a candidate for the keys that it needs."""
        return Newcomer(self.jid, self.row["token"], self.row["process"])

    def as_end(self, row: dict[str, Any]) -> Ended:
        """Return an end for a run that does not begin, and holds no section."""
        return Ended(row, unique=self.unique)


@dataclass(frozen=True)
class Ended(Event):
    """A run has ended, or a job that never ran."""

    kind = "end"

    #: The row of a run that did not finish.
    failure: dict[str, Any] | None = None
    #: The run's log lines, as rows.
    lines: list[dict[str, Any]] | None = None
    #: Log lines to delete: the jid, the token, and the first and last number.
    forget: Sequence[Any] | None = None
    #: The start of its run, if it may not have been written.
    start: Started | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Amended(Event):
    """What the log must say differently of a run that has not ended."""

    kind = "amend"

    #: The columns to change.
    columns: dict[str, Any]

    @property
    def is_withdrawal(self) -> bool:
        """Whether the run does not begin."""
        return "token" in self.columns


def amended(row: dict[str, Any], columns: dict[str, Any]) -> Amended:
    """Return the event that changes columns of the run with this row."""
    return Amended({"jid": row["jid"], "token": row["token"]}, columns)


def withdrawn(
    row: dict[str, Any], instant: int, *, section: dict[str, Any] | None = None
) -> Amended:
    """Return the event for a run that does not begin yet: its job is what it was before.

    Parameters:
      row: The columns of its start.
      instant: Now, in milliseconds since 1970.
      section: The keys that it acquired.
    """
    names = ["started_at", "token", "worker", "process"]
    if row["attempt"] == 1:
        # Otherwise it is that of the first run.
        names.append("queue_time")
    columns = dict.fromkeys(names) | {"state": State.ENQUEUED.value, "updated_at": instant}
    mine = {name: row[name] for name in ("jid", "token", "attempt")}
    return Amended(mine, columns, section=section)


def keeps_newest(unique: dict[str, Any] | None) -> bool:
    """Return whether the newest of the messages with this unique key is kept."""
    return unique is not None and unique.get("keep") == "last"


@dataclass(frozen=True)
class Answer:
    """The log's answer to a start, given once its effects are committed."""

    #: Whether the run may begin.
    granted: bool
    #: The lease of the keys, if the run may begin and needs any.
    lease: Held | None = None
    #: The job's current state, if the run may not begin.
    found: str | None = None
    #: Why the keys were refused.
    refusal: Refusal | None = None
    #: Milliseconds for which the message is put back; None if it is not.
    delay: int | None = None
    #: Whether a newer message superseded it.
    gave_way: bool = False


#: The answer to a run that needs no key.
GRANTED = Answer(granted=True)
#: The answer to a run that needs a key, while its availability is unknown.
UNANSWERED = Answer(granted=False)

#: Answers by jid.  A start without an answer may run.
Answers: TypeAlias = "Mapping[str, Answer]"
