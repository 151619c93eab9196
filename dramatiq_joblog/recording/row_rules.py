"""How an upsert merges each column of an event into the row of its job.

The guard of a rule, in the upsert's ``WHERE``, decides whether anything is written.
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


#: The common cases in which a run may begin; :func:`judge_start` decides all others.
_MAY_START = f"""(
    coalesce(job.token, '') <> excluded.token AND (
      (job.state IN {_in(STARTABLE)} AND excluded.attempt >= job.attempt AND (
        job.state = 'waiting' OR job.token IS NULL))
      OR (job.state = 'retrying' AND excluded.attempt > job.attempt)))"""

#: Only the run with the row's token ends an open run.  An end without a known start applies
#: to a job that has not begun, or not yet begun this attempt.
_MAY_END = f"""(
    (job.token = excluded.token AND job.state IN {_in(OPEN)})
    OR (job.state IN ('enqueued', 'delayed', 'waiting', 'retrying') AND (
      job.token IS NULL OR excluded.attempt > job.attempt
      OR (excluded.started_at IS NULL AND excluded.attempt = job.attempt))))"""

_RUN_GUARD = f"CASE WHEN excluded.state = 'started' THEN {_MAY_START} ELSE {_MAY_END} END"

#: A delay has ended; any other enqueue event leaves an existing row unchanged.
_ENQUEUE_GUARD = """job.state = 'delayed' AND excluded.state = 'enqueued'
    AND excluded.attempt >= job.attempt"""

#: Columns always replaced by the event's value.
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
#: Columns of the last run that a start keeps.
KEPT_AT_START = ("duration", "error_type", "error_message")
#: Columns set once.
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

# The times come from two hosts' clocks, so the difference may be negative.
_WAITED = "(excluded.started_at - coalesce(job.enqueued_at, excluded.enqueued_at))"

#: The expressions of columns that are replaced even if the event has no value for them.
_REPLACES = {
    **{column: f"excluded.{column}" for column in _REPLACED},
    **{
        column: f"CASE WHEN excluded.state = 'started' THEN job.{column} ELSE excluded.{column} END"
        for column in KEPT_AT_START
    },
    # The missing columns may be stored by now.
    "note": (
        f"CASE WHEN substr(job.note, 1, {len(NOT_STORED)}) = '{NOT_STORED}' "
        "THEN excluded.note ELSE coalesce(job.note, excluded.note) END"
    ),
    # Each run starts with no progress.
    "progress": (
        "CASE WHEN excluded.state = 'started' THEN NULL "
        "ELSE coalesce(excluded.progress, job.progress) END"
    ),
    # A job that was dropped before its first run has no queue time.
    "queue_time": (
        "CASE WHEN excluded.started_at IS NULL AND excluded.attempt = 1 "
        f"THEN NULL ELSE coalesce(job.queue_time, ({_WAITED} + abs({_WAITED})) / 2) END"
    ),
}


def _fills(job: Any) -> dict[str, str]:
    """Return the expressions of all other columns of a job, including those of a custom model."""
    columns = {f.column_name for f in job._meta.sorted_fields} - {"id", *_NEVER, *_REPLACES}
    first = {c: f"coalesce(job.{c}, excluded.{c})" for c in sorted(columns & {*_FIRST})}
    last = {c: f'coalesce(excluded."{c}", job."{c}")' for c in sorted(columns - {*_FIRST})}
    return first | last


def run_rule(job: Any) -> Rule:
    """Return the rule of starts and ends."""
    return Rule(job, "job", ("jid",), _RUN_GUARD, _REPLACES, _fills(job))


def enqueue_rule(job: Any) -> Rule:
    """Return the rule of enqueue events."""
    sets = {column: f"excluded.{column}" for column in ("state", "eta", "updated_at")}
    return Rule(job, "job", ("jid",), _ENQUEUE_GUARD, sets, {})


def failure_rule(failure: Any) -> Rule:
    """Return the rule of runs that are not the last of their job, or did not finish."""
    columns = [f.column_name for f in failure._meta.sorted_fields]
    sets = {c: f"excluded.{c}" for c in columns if c not in ("id", "jid", "token")}
    guard = f"run.outcome = '{Outcome.INTERRUPTED.value}'"
    return Rule(failure, "run", ("jid", "token"), guard, sets, {})


def line_rule(line: Any) -> Rule:
    """Return the rule of log lines: an existing line stays."""
    key = ("jid", "token", "number")
    return Rule(line, "line", key, "1 = 0", {"text": "excluded.text"}, {})


def default_of(field: Any) -> Any:
    """Return the default of a field of a model, or None."""
    return field.default() if callable(field.default) else field.default
