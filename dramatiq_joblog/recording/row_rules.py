"""What becomes of each column of a row when another event of its job is written to it.

The guard of a rule decides, in the ``WHERE`` of the upsert, whether anything is written at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dramatiq_joblog.database.upsert import Rule
from dramatiq_joblog.states import OPEN, STARTABLE, Outcome

from .repair import NOT_STORED

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dramatiq_joblog.states import State


def _in(states: Iterable[State]) -> str:
    return "(" + ", ".join(f"'{state.value}'" for state in states) + ")"


#: A run may begin in the common case; :func:`judge_start` decides every other.
_MAY_START = f"""(
    coalesce(job.token, '') <> excluded.token AND (
      (job.state IN {_in(STARTABLE)} AND excluded.attempt >= job.attempt AND (
        job.state = 'waiting' OR job.token IS NULL))
      OR (job.state = 'retrying' AND excluded.attempt > job.attempt)))"""

#: Only the holder of the token ends an open run.  An end without a known start applies
#: to a job that has not begun, or not yet begun this attempt.
_MAY_END = f"""(
    (job.token = excluded.token AND job.state IN {_in(OPEN)})
    OR (job.state IN ('enqueued', 'delayed', 'waiting', 'retrying') AND (
      job.token IS NULL OR excluded.attempt > job.attempt
      OR (excluded.started_at IS NULL AND excluded.attempt = job.attempt))))"""

_RUN_GUARD = f"CASE WHEN excluded.state = 'started' THEN {_MAY_START} ELSE {_MAY_END} END"

#: A delay has run out; any other enqueue changes nothing on a row that is there.
_ENQUEUE_GUARD = """job.state = 'delayed' AND excluded.state = 'enqueued'
    AND excluded.attempt >= job.attempt"""

#: Taken as the run says.
_REPLACED = (
    "state",
    "attempt",
    "eta",
    "started_at",
    "finished_at",
    "updated_at",
    "dead_reason",
    "skip_reason",
    "worker",
    "process",
    "token",
)
#: What a beginning run leaves as the last one left it.
KEPT_AT_START = ("duration", "error_type", "error_message")
#: Set once.
_FIRST = (
    "enqueued_at",
    "args",
    "kwargs",
    "options",
    "withheld",
    "sealed",
    "parent_jid",
    "root_jid",
    "replay_of",
    "trace_id",
)
_NEVER = ("jid", "created_at")

# By two hosts' clocks, so it may come out below nothing.
_WAITED = "(excluded.started_at - coalesce(job.enqueued_at, excluded.enqueued_at))"

#: What replaces what the last run left, though the event says nothing of it.
_REPLACES = {
    **{column: f"excluded.{column}" for column in _REPLACED},
    **{
        column: f"CASE WHEN excluded.state = 'started' THEN job.{column} ELSE excluded.{column} END"
        for column in KEPT_AT_START
    },
    # What could not be stored may be by now.
    "note": (
        f"CASE WHEN substr(job.note, 1, {len(NOT_STORED)}) = '{NOT_STORED}' "
        "THEN excluded.note ELSE coalesce(job.note, excluded.note) END"
    ),
    # Each run begins its own.
    "progress": (
        "CASE WHEN excluded.state = 'started' THEN NULL "
        "ELSE coalesce(excluded.progress, job.progress) END"
    ),
    # A job that was dropped before its body ran has not waited for its first run.
    "queue_time": (
        "CASE WHEN excluded.started_at IS NULL AND excluded.attempt = 1 "
        f"THEN NULL ELSE coalesce(job.queue_time, ({_WAITED} + abs({_WAITED})) / 2) END"
    ),
}


def _fills(job: Any) -> dict[str, str]:
    """Return what becomes of the other columns of a job, of a model of the user's own too."""
    columns = {f.column_name for f in job._meta.sorted_fields} - {"id", *_NEVER, *_REPLACES}
    first = {c: f"coalesce(job.{c}, excluded.{c})" for c in sorted(columns & {*_FIRST})}
    last = {c: f'coalesce(excluded."{c}", job."{c}")' for c in sorted(columns - {*_FIRST})}
    return first | last


def run_rule(job: Any) -> Rule:
    """Return the rule of starts and ends."""
    return Rule(job, "job", ("jid",), _RUN_GUARD, _REPLACES, _fills(job))


def enqueue_rule(job: Any) -> Rule:
    """Return the rule of what was sent."""
    sets = {column: f"excluded.{column}" for column in ("state", "eta", "updated_at")}
    return Rule(job, "job", ("jid",), _ENQUEUE_GUARD, sets, {})


def failure_rule(failure: Any) -> Rule:
    """Return the rule of runs that are not the last of their job, or did not finish."""
    columns = [f.column_name for f in failure._meta.sorted_fields]
    sets = {c: f"excluded.{c}" for c in columns if c not in ("id", "jid", "token")}
    guard = f"run.outcome = '{Outcome.INTERRUPTED.value}'"
    return Rule(failure, "run", ("jid", "token"), guard, sets, {})


def line_rule(line: Any) -> Rule:
    """Return the rule of log lines: one that is there stays."""
    key = ("jid", "token", "number")
    return Rule(line, "line", key, "1 = 0", {"text": "excluded.text"}, {})


def default_of(field: Any) -> Any:
    """Return the default of a field of a model, or None."""
    return field.default() if callable(field.default) else field.default
