"""The import of django_dramatiq's tasks, as rows of the log.

Django is not needed: the table is read directly.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, NamedTuple

from peewee import ForeignKeyField, PeeweeException

from dramatiq_joblog.database.checkout import checked_out, transaction
from dramatiq_joblog.database.url import describe
from dramatiq_joblog.errors import ConfigurationError, DatabaseAwayError
from dramatiq_joblog.payload.sanitize import (
    MAX_MESSAGE,
    MAX_TRACEBACK,
    clean,
    clean_optional,
    clean_redacted,
    document,
    fold_jid,
)
from dramatiq_joblog.payload.values import MAX_INT, as_int, as_millis
from dramatiq_joblog.schema.fields import is_text_of_number, user_asked
from dramatiq_joblog.schema.models import to_millis
from dramatiq_joblog.schema.query import user_field
from dramatiq_joblog.states import DeadReason, Outcome, State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from peewee import Database

    from dramatiq_joblog.recording.log import Imported, Log

#: The table of django_dramatiq, as its migrations name it.
DJANGO_TABLE = "django_dramatiq_task"
#: The number of rows per batch.
BATCH = 500

_REDACTED = "its arguments are stored without their secrets"
_STATES = {
    "enqueued": State.ENQUEUED,
    "delayed": State.DELAYED,
    # Its worker reported nothing else: it is still running, or lost.
    "running": State.LOST,
    "failed": State.DEAD,
    "done": State.FINISHED,
    "skipped": State.SKIPPED,
}


class _Task(NamedTuple):
    """A row of django_dramatiq's table."""

    id: Any
    status: str
    created_at: Any
    updated_at: Any
    message_data: Any


def import_django_dramatiq(
    joblog: Log[Imported],
    source: Database | None = None,
    *,
    table: str = DJANGO_TABLE,
    user_from: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Counter[str]:
    """Copy the tasks of django_dramatiq into the log.

    It is safe to repeat: jobs that are already in the log are not changed.  Stop the workers
    first, so that running tasks have ended.

    If this process has declared a task's actor, the job gets the job type, the user and the other
    columns from the actor's options, and positional secrets are recognised by name.

    Parameters:
      joblog: The log; its tables must exist.
      source: The database with the tasks; None for the log's own.
      table: The table of the tasks.
      user_from: The parameter with the user of each job; overrides the actors' *job_user*; for
        actors that are not declared here, only keyword arguments are found.
      progress: Called after each batch with the number of tasks read.

    Returns:
      The number of jobs written, by state.

    Raises:
      ConfigurationError: If there is no such table, or it cannot be read.
      peewee.DatabaseError: If the log's own tables cannot be read.
    """
    core = joblog.core
    written: Counter[str] = Counter()
    read = 0
    # First of all: the log's own tables may be missing.
    core.tables.job.select(core.tables.job.id).limit(1).execute()
    for batch in _batches(source or core.database, table):
        jobs = [_job_of(task, core, user_from) for task in batch]
        with transaction(core.database):
            known = {
                job.jid
                for job in core.tables.job.select(core.tables.job.jid).where(
                    core.tables.job.jid.in_([job["jid"] for job, _ in jobs])
                )
            }
            new = [(job, failure) for job, failure in jobs if job["jid"] not in known]
            if new:
                rows = _alike(core.tables.job, [job for job, _ in new])
                _forget_unknown_users(user_field(core.tables.job), rows)
                core.tables.job.insert_many(rows).execute()
            failures = [failure for _, failure in new if failure is not None]
            if failures:
                core.tables.failure.insert_many(failures).execute()
        written.update(str(job["state"]) for job, _ in new)
        read += len(batch)
        if progress is not None:
            progress(read)
    return written


def _batches(source: Database, table: str) -> Iterator[list[_Task]]:
    """Yield the tasks, oldest first, without holding a transaction open."""
    quote = "`" if source.quote[0] == "`" else '"'
    columns = ", ".join(f"{quote}{name}{quote}" for name in _Task._fields)
    text = f"SELECT {columns} FROM {quote}{table}{quote}"
    param = source.param
    last: _Task | None = None
    while True:
        where = "" if last is None else f" WHERE (created_at, id) > ({param}, {param})"
        values = () if last is None else (last.created_at, last.id)
        query = f"{text}{where} ORDER BY created_at, id LIMIT {BATCH}"
        try:
            with checked_out(source):
                batch = [_Task(*row) for row in source.execute_sql(query, values).fetchall()]
        except (DatabaseAwayError, PeeweeException) as e:
            raise ConfigurationError(
                f"the table {table!r} of {describe(source)} cannot be read: {str(e).strip()}; "
                "name the database with --from, and the table with --table"
            ) from e
        if not batch:
            return
        last = batch[-1]
        yield batch


def _alike(model: Any, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows that all have the same columns, as needed by a single statement."""
    fields = {name: model._meta.combined[name] for row in rows for name in row}
    return [{name: row.get(name, f.default) for name, f in fields.items()} for row in rows]


def _forget_unknown_users(field: Any, rows: list[dict[str, Any]]) -> None:
    """Remove users that no longer exist, if the model has a foreign key to users."""
    if not isinstance(field, ForeignKeyField):
        return
    name, key = field.column_name, field.rel_field
    asked = {row[name] for row in rows if row.get(name) is not None}
    known = {value for (value,) in field.rel_model.select(key).where(key.in_(asked)).tuples()}
    for row in rows:
        if row.get(name) is not None and row[name] not in known:
            row["note"] = f"{row['note']}; its user {row[name]!r} no longer exists"
            row[name] = None


def _columns_of(
    message: Mapping[str, Any], joblog: Imported, user_from: str | None
) -> dict[str, Any]:
    """Return the columns that a message determines, with its actor's options if it is declared."""
    row = {} if joblog.sender is None else joblog.sender.describe(message, user_from)
    if row:
        fields = joblog.tables.job._meta.combined
        return {
            name: None if value is None else fields[name].python_value(value)
            for name, value in row.items()
        }
    redactor = joblog.redactor
    args = document(list(message.get("args", ())), redactor)
    kwargs = document(dict(message.get("kwargs", {})), redactor)
    user = None if user_from is None else message.get("kwargs", {}).get(user_from)
    field = user_field(joblog.tables.job)
    return {
        "args": json.loads(args.text),
        "kwargs": json.loads(kwargs.text),
        "note": args.note or kwargs.note,
        "withheld": _REDACTED if args.redacted or kwargs.redacted else args.note or kwargs.note,
        field.column_name: user_asked(field, user),
        "user_is_text": is_text_of_number(user) or None,
    }


def _job_of(
    task: _Task, joblog: Imported, user_from: str | None
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return a task as a job's row, and as a failed run if it failed."""
    redactor = joblog.redactor
    message = json.loads(bytes(task.message_data))
    options = message.get("options", {})
    created, updated = _millis(task.created_at), _millis(task.updated_at)
    state = _STATES.get(task.status, State.LOST)
    # django_dramatiq writes before Retries counts, so this is the last attempt in any state.
    attempt = (as_int(options.get("retries"), most=MAX_INT - 1) or 0) + 1
    sent = as_millis(message.get("message_timestamp"))
    final = task.status in ("done", "failed", "skipped")
    columns = _columns_of(message, joblog, user_from)
    job = columns | {
        "jid": fold_jid(message.get("message_id", task.id)),
        "actor": clean_optional(message["actor_name"]),
        "queue": clean_optional(str(message["queue_name"]).removesuffix(".DQ")),
        "state": state.value,
        "attempt": attempt,
        "enqueued_at": created if sent is None else sent,
        "eta": as_millis(options.get("eta")) if not final else None,
        "finished_at": updated if final else None,
        "created_at": created,
        "updated_at": updated,
        "note": "; ".join(["imported from django_dramatiq", *filter(None, [columns["note"]])]),
        "dead_reason": None,
        "skip_reason": "imported from django_dramatiq" if state is State.SKIPPED else None,
        "error_type": None,
        "error_message": None,
    }
    if state is not State.DEAD:
        return job, None
    reason = DeadReason.RETRIES_EXHAUSTED if attempt > 1 else DeadReason.NO_RETRIES
    text = str(options.get("traceback") or "")
    traceback = clean_redacted(text, MAX_TRACEBACK, redactor.traceback)
    error_type, error_message = _last_line(traceback)
    job |= {
        "dead_reason": reason.value,
        "error_type": error_type,
        "error_message": error_message,
    }
    failure = {
        "jid": job["jid"],
        "token": f"imported:{str(task.id).replace('-', '')[:22]}",
        "attempt": job["attempt"],
        "outcome": Outcome.DEAD.value,
        "finished_at": updated,
        "error_type": error_type,
        "error_message": error_message,
        "traceback": traceback or None,
    }
    return job, failure


def _last_line(traceback: str) -> tuple[str | None, str | None]:
    """Return the class and message of the error at the end of a traceback."""
    last = traceback.strip().splitlines()[-1:] or [""]
    found = re.match(r"([\w.]+)(?:: (.*))?$", last[0])
    if found is None:
        return None, None
    name, text = found.groups()
    return name.rpartition(".")[2], clean(text or "", MAX_MESSAGE)


def _millis(value: Any) -> int:
    """Return a Django instant in milliseconds since 1970; SQLite stores it as text in UTC."""
    instant = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    return to_millis(instant if instant.tzinfo else instant.replace(tzinfo=timezone.utc))
