"""What a job can be, and how it may change: the words of the log, without any I/O."""

from __future__ import annotations

from enum import Enum
from typing import Literal, TypeAlias


class _Text(str, Enum):
    """An enum whose members are, compare and print as their text."""

    def __str__(self) -> str:
        return str(self.value)

    def __format__(self, format_spec: str) -> str:
        return format(str(self.value), format_spec)


class State(_Text):
    """Where a job stands."""

    #: The broker has it and nothing has run.
    ENQUEUED = "enqueued"
    #: The broker has it and holds it back until ``eta``.
    DELAYED = "delayed"
    #: Its critical section is taken; it comes back at ``eta``.
    WAITING = "waiting"
    #: A run is going on.
    STARTED = "started"
    #: The last run failed and the next is due at ``eta``.
    RETRYING = "retrying"
    #: The worker that ran it is gone and no new run has begun.
    LOST = "lost"
    #: Done.  Final.
    FINISHED = "finished"
    #: It will not run again by itself; ``dead_reason`` says why.  Final.
    DEAD = "dead"
    #: Dropped on purpose; ``skip_reason`` says by what.  Final.
    SKIPPED = "skipped"


class DeadReason(_Text):
    """Why a job will not run again by itself."""

    #: It failed more often than it may be retried.
    RETRIES_EXHAUSTED = "retries_exhausted"
    #: It failed, and its options or the broker's middleware allow no retry.
    NO_RETRIES = "no_retries"
    #: It failed and was to be retried, but the retry could not be enqueued: it is gone from the
    #: broker, and only a new run of it brings its work back.
    RETRY_LOST = "retry_lost"
    #: Either of the two above, in rows that were written before these were distinguished.
    NOT_RETRIED = "not_retried"
    #: It raised what its ``throws`` option names.
    THROWS = "throws"
    #: It was older than its ``max_age`` before it could run.
    AGE_LIMIT = "age_limit"
    #: No actor of its name is declared on the worker.
    UNKNOWN_ACTOR = "unknown_actor"
    #: Someone aborted it, by ``dramatiq_abort``.
    ABORTED = "aborted"
    #: Too many of its runs lost their worker: a suspected poison pill.
    INTERRUPTED = "interrupted"
    #: Its critical section was taken and its policy is to fail.
    CONFLICT = "conflict"
    #: It waited for its critical section as long as it may.
    WAIT_TIMEOUT = "wait_timeout"
    #: Someone gave it up while it did not run: see :meth:`JobLog.cancel`.
    CANCELLED = "cancelled"


class Outcome(_Text):
    """How a run ended that is not the last of its job, or that did not finish."""

    #: It finished, and its job has run again since, or is to: its message was enqueued again.
    FINISHED = "finished"
    #: It raised, and a retry was enqueued.
    RETRIED = "retried"
    #: It raised, and the job is dead.
    DEAD = "dead"
    #: Its worker vanished, or a newer run took its place.
    INTERRUPTED = "interrupted"
    #: The actor dropped the job by raising ``SkipMessage``.
    SKIPPED = "skipped"
    #: Its critical section was taken.
    WAITED = "waited"


class ProblemKind(_Text):
    """What can be wrong with a log and its jobs; what costs most comes first."""

    #: The database does not answer in time, or its tables are not those of this version.
    DATABASE = "database"
    #: Jobs were lost with their worker, and have not run again.
    LOST = "lost"
    #: Jobs are dead because the broker refused their retry.
    RETRIES_LOST = "retries_lost"
    #: A job that was expected to finish did not: see :class:`Expect`.
    MISSED = "missed"
    #: An error that was not seen for a month.
    NEW_ERROR = "new_error"
    #: An error that is several times as frequent as usual.
    RISING_ERROR = "rising_error"
    #: Jobs wait in a queue that no live worker consumes, or for long in one that some do.
    QUEUES = "queues"
    #: Jobs wait while all threads that could run them are busy.
    THREADS = "threads"
    #: The time of delayed, retrying or waiting jobs has passed, and they do not run.
    OVERDUE = "overdue"
    #: Sections are held by jobs that have ended.
    SECTIONS = "sections"
    #: A type of jobs fails more often than a week ago.
    FAILING = "failing"
    #: A type of jobs takes longer than a week ago.
    SLOWER = "slower"
    #: Events lie on this host's disk although the database answers.
    SPOOLS = "spools"
    #: A clock is wrong.
    CLOCK = "clock"
    #: The database's settings may cost commits, or hinder readers.
    SETTINGS = "settings"


#: Nothing follows these but a deliberate new run.
FINAL = frozenset({State.FINISHED, State.DEAD, State.SKIPPED})

#: A final state, as a member or as its text.
FinalState: TypeAlias = Literal[
    "finished", "dead", "skipped", State.FINISHED, State.DEAD, State.SKIPPED
]

#: A retryable job that has failed for now still keeps others out.
IN_PROGRESS = (State.STARTED, State.RETRYING)

#: States of jobs that have not ended: a run of them is going on or may come.
ACTIVE = tuple(state for state in State if state not in FINAL)

#: Names of several states at once, for people.
GROUPS: dict[str, tuple[State, ...]] = {"active": ACTIVE, "in_progress": IN_PROGRESS}

#: States of jobs that can be cancelled: nothing of them runs, as far as is known.
CANCELLABLE = (State.ENQUEUED, State.DELAYED, State.WAITING, State.RETRYING, State.LOST)

#: States in which the next run is due at a time.
DUE = (State.DELAYED, State.RETRYING, State.WAITING)

#: States a run may begin from, whatever the attempt.
STARTABLE = (State.ENQUEUED, State.DELAYED, State.WAITING)

#: States whose run is open: only the holder of its token may end it.
OPEN = (State.STARTED, State.LOST)


class Start(Enum):
    """What becomes of a run that wants to begin on a row that says otherwise."""

    #: The row already shows this run: the event came twice.
    KNOWN = "known"
    #: Begin, closing the open run on the row as interrupted.
    TAKE_OVER = "take over"
    #: Begin.
    BEGIN = "begin"
    #: Do not run: the job has ended, or a newer attempt is known.
    REFUSE = "refuse"


def judge_start(
    *,
    state: str,
    attempt: int,
    token: str | None,
    new_attempt: int,
    new_token: str,
    repeated: bool,
    rerun: bool | None,
    cancelled: bool = False,
    late: bool = False,
) -> Start:
    """Decide what a run may do that begins while its job's row is in *state*.

    A message runs as often as it was enqueued, as it does without a log.  Only one whose
    delivery is *repeated* is not run: a run of that very delivery has ended, and its
    acknowledgement was lost.  With *rerun* a job that has ended runs then too; with
    ``rerun=False`` one that has finished never runs again, whatever is delivered.

    *late* is a run that began before what the row shows, and is only written now.  Of a job
    that was *cancelled* nothing begins, as it was meant for this very message; also with
    *rerun*.
    """
    if cancelled:
        return Start.REFUSE
    if token == new_token:
        return Start.KNOWN
    if late:
        may_begin = _may_begin_late(state, attempt, new_attempt)
    elif repeated:
        may_begin = bool(rerun) and state in FINAL
    else:
        may_begin = rerun is not False or state != State.FINISHED
    if not may_begin:
        return Start.REFUSE
    return Start.TAKE_OVER if state in OPEN else Start.BEGIN


def _may_begin_late(state: str, attempt: int, new_attempt: int) -> bool:
    """Return whether a run of the past is newer than what the row shows: only by its attempt."""
    if state in STARTABLE:
        return new_attempt >= attempt
    return new_attempt > attempt and state != State.FINISHED
