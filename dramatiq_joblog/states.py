"""The states, reasons and outcomes of jobs, and the rules for transitions, without any I/O."""

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
    """The state of a job."""

    #: The broker has the message, and no run has begun.
    ENQUEUED = "enqueued"
    #: The broker holds the message back until ``eta``.
    DELAYED = "delayed"
    #: Its critical section is taken; it runs once that is free.
    WAITING = "waiting"
    #: A run is in progress.
    STARTED = "started"
    #: The last run failed, and the next is due at ``eta``.
    RETRYING = "retrying"
    #: The worker of its run is gone, and no new run has begun.
    LOST = "lost"
    #: Done.  Final.
    FINISHED = "finished"
    #: It will not run again by itself; ``dead_reason`` says why.  Final.
    DEAD = "dead"
    #: Dropped on purpose; ``skip_reason`` says by what and why.  Final.
    SKIPPED = "skipped"


class DeadReason(_Text):
    """Why a job will not run again by itself."""

    #: It failed more often than ``max_retries`` allows.
    RETRIES_EXHAUSTED = "retries_exhausted"
    #: It failed, and its options or the broker's middleware allow no retry.
    NO_RETRIES = "no_retries"
    #: It failed, and its retry could not be enqueued: its message is gone, and it runs only if it
    #: is requeued, or if its message comes again because it was not acknowledged either.
    RETRY_LOST = "retry_lost"
    #: It raised an error that its ``throws`` option names.
    THROWS = "throws"
    #: It reached its ``max_age`` before it could run.
    AGE_LIMIT = "age_limit"
    #: No actor of its name is declared on the worker.
    UNKNOWN_ACTOR = "unknown_actor"
    #: Someone aborted it with ``dramatiq_abort``.
    ABORTED = "aborted"
    #: Too many of its runs lost their worker: a suspected poison pill.
    INTERRUPTED = "interrupted"
    #: Its critical section was taken, and its policy is to fail.
    CONFLICT = "conflict"
    #: It waited for its critical section for as long as ``wait_for`` allows.
    WAIT_TIMEOUT = "wait_timeout"
    #: Someone cancelled it while it was not running: see :meth:`JobLog.cancel`.
    CANCELLED = "cancelled"


class Outcome(_Text):
    """How a run ended, if it did not finish or is not the last run of its job."""

    #: It finished, and its message was enqueued again.
    FINISHED = "finished"
    #: It raised, and a retry was enqueued.
    RETRIED = "retried"
    #: It raised, and the job is dead.
    DEAD = "dead"
    #: Its worker vanished, or a newer run replaced it.
    INTERRUPTED = "interrupted"
    #: The actor dropped the job by raising ``SkipMessage``.
    SKIPPED = "skipped"
    #: Its critical section was taken.
    WAITED = "waited"


class ProblemKind(_Text):
    """The kinds of problems of a log and its jobs, the most serious first."""

    #: The database does not respond in time, or its tables do not match this version.
    DATABASE = "database"
    #: Jobs were lost with their worker, and have not run again.
    LOST = "lost"
    #: Jobs are dead because the broker refused their retry.
    RETRIES_LOST = "retries_lost"
    #: An expected job did not finish: see :class:`Expect`.
    MISSED = "missed"
    #: An error that did not occur for a month.
    NEW_ERROR = "new_error"
    #: An error that is several times as frequent as usual.
    RISING_ERROR = "rising_error"
    #: Jobs wait in a queue without live workers, or for long in one that has some.
    QUEUES = "queues"
    #: Jobs wait while all threads that could run them are busy.
    THREADS = "threads"
    #: Delayed, retrying or waiting jobs are past their time and do not run.
    OVERDUE = "overdue"
    #: Sections are held by jobs that have ended.
    SECTIONS = "sections"
    #: A job type fails more often than a week ago.
    FAILING = "failing"
    #: A job type takes longer than a week ago.
    SLOWER = "slower"
    #: Events are still on this host's disk although the database answers.
    SPOOLS = "spools"
    #: A clock is wrong.
    CLOCK = "clock"
    #: Settings of the database may lose commits, or block readers.
    SETTINGS = "settings"


#: Final states: only a deliberate new run follows.
FINAL = frozenset({State.FINISHED, State.DEAD, State.SKIPPED})

#: A final state, as a member or as its text.
FinalState: TypeAlias = Literal[
    "finished", "dead", "skipped", State.FINISHED, State.DEAD, State.SKIPPED
]

#: A job that waits for its retry is still in progress.
IN_PROGRESS = (State.STARTED, State.RETRYING)

#: States of jobs that have not ended.
ACTIVE = tuple(state for state in State if state not in FINAL)

#: Names for groups of states.
GROUPS: dict[str, tuple[State, ...]] = {"active": ACTIVE, "in_progress": IN_PROGRESS}

#: States of jobs that can be cancelled, because they are not running.
CANCELLABLE = (State.ENQUEUED, State.DELAYED, State.WAITING, State.RETRYING, State.LOST)

#: States with a next run at a known time.
DUE = (State.DELAYED, State.RETRYING, State.WAITING)

#: States a run may begin from, whatever the attempt.
STARTABLE = (State.ENQUEUED, State.DELAYED, State.WAITING)

#: States whose run is open: only the holder of its token may end it.
OPEN = (State.STARTED, State.LOST)


class Start(Enum):
    """What a run may do when it begins, given the row of its job."""

    #: The row already shows this run: the event arrived twice.
    KNOWN = "known"
    #: Begin, and close the open run of the row as interrupted.
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

    A message runs as often as it was enqueued, with or without the log.  Only a *repeated*
    delivery does not run: a run of the same delivery has ended, and its acknowledgement was lost.
    With *rerun* it runs even if its job has ended; with ``rerun=False`` a job that has finished
    never runs again.

    *late* means that the run began before what the row shows, and is only written now.  A job
    that was *cancelled* does not run, even with *rerun*, because this very message was cancelled.
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
