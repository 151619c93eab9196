"""The rows of the log: fields, indexes and derived properties."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

from peewee import (
    SQL,
    BigAutoField,
    BooleanField,
    Field,
    ForeignKeyField,
    InterfaceError,
    ModelBase,
)

from dramatiq_joblog.database.dialects import dialect_of
from dramatiq_joblog.database.queries import LentModel
from dramatiq_joblog.payload.sanitize import MAX_JID, text_of
from dramatiq_joblog.payload.values import iso_text, to_millis
from dramatiq_joblog.states import IN_PROGRESS, State

from .fields import (
    BigNumberField,
    InstantField,
    JsonField,
    KeyField,
    NameField,
    NumberField,
    ProseField,
    StateField,
    UserIdField,
    instant_of,
)
from .query import JobQuery, literal_states

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

    from dramatiq_joblog.database.queries import Select

__all__ = [
    "Action",
    "AlertState",
    "Deploy",
    "Failure",
    "InstantField",
    "Job",
    "JsonField",
    "Line",
    "Lock",
    "Mark",
    "Mute",
    "SavedSearch",
    "StateField",
    "Total",
    "UserIdField",
    "Worker",
    "add_indexes",
    "instant_of",
    "to_millis",
]

#: Characters of an error's class in a total: an index key of MySQL has no room for more.
MAX_TOTAL_ERROR = 200


@dataclass(frozen=True)
class Bond:
    """Access from rows of jobs and failures to the other tables of their log."""

    failure: type[Failure]
    line: type[Line]
    #: Called before jobs are queried.
    on_select: Callable[[], None] | None = None


class _Row(LentModel):
    """A row that can be returned as plain values."""

    #: Columns that are internal to the log.
    _own: ClassVar[frozenset[str]] = frozenset({"id"})

    def as_dict(self) -> dict[str, Any]:
        """Return the row as a dict that JSON can hold, in the order of its columns.

        Instants are ISO texts in UTC with milliseconds, and a foreign key is its id.  Internal
        numbers and tokens, and encrypted values, are left out.
        """
        meta: Any = self._meta
        return {
            name: _plain(getattr(self, name))
            for name in (
                field.object_id_name if isinstance(field, ForeignKeyField) else field.name
                for field in meta.sorted_fields
                if field.name not in self._own
            )
        }


#: Options of a model that decide its table's name.
_NAMES_A_TABLE = ("legacy_table_names", "table_function", "table_name")


class _JobBase(ModelBase):
    """Lets a foreign key of a subclass replace the inherited column of its id.

    The table is named like that of any other model, although its indexes are not.
    """

    def __new__(cls, name: str, bases: tuple[type, ...], attrs: dict[str, Any]) -> Any:
        for key, value in list(attrs.items()):
            if isinstance(value, ForeignKeyField):
                attrs.setdefault(value.object_id_name or f"{key}_id", None)
        own = vars(attrs.get("Meta", object))
        functions = [base._meta.table_function for base in bases if hasattr(base, "_meta")]
        if not any(functions) and own.keys().isdisjoint(_NAMES_A_TABLE):
            # The name that peewee gives the table of any other model.
            options = {key: value for key, value in own.items() if not key.startswith("__")}
            attrs["Meta"] = type("Meta", (), options | {"table_name": name.lower()})
        return super().__new__(cls, name, bases, attrs)  # type: ignore[no-untyped-call]


class Job(_Row, metaclass=_JobBase):
    """One job: one message, through all its runs.

    Subclass it to add your own columns; the subclass gets its own table.

    Example:
      >>> class ShopJob(Job):
      ...     user = ForeignKeyField(User, backref="jobs", null=True)
    """

    #: The primary key, in order of insertion.
    id = BigAutoField()
    #: Dramatiq's ``message_id``: the same through every retry, delay and redelivery.
    jid: Field[str] = KeyField(max_length=MAX_JID, unique=True)
    #: Name of the actor.
    actor: Field[str] = NameField(max_length=255)
    #: Name of the queue, without the suffix of a delay queue.
    queue: Field[str] = NameField(max_length=255)
    #: What kind of work it is, or None.
    job_type: Field[str | None] = NameField(max_length=255, null=True)
    #: The user for whom the job works, or None.
    user_id: Field[int | str | None] = UserIdField(max_length=MAX_JID, null=True)
    #: True if the user's id was sent as a string that reads like a whole number; otherwise None.
    user_is_text = BooleanField(null=True)
    #: The state of the job.
    state: Field[State | str] = StateField(max_length=16)
    #: Number of the current or last attempt; 1 for the first.
    attempt: Field[int] = NumberField()
    #: How often it may be retried; None if there is no limit.
    max_retries: Field[int | None] = NumberField(null=True)
    #: How many of its runs lost their worker; None if none did.
    interruptions: Field[int | None] = NumberField(null=True)
    #: When it is due to run next, in states with a next run.
    eta: Field[datetime | None] = InstantField(null=True)
    #: When it was first sent.
    enqueued_at: Field[datetime | None] = InstantField(null=True)
    #: When the last run started; None before the first.
    started_at: Field[datetime | None] = InstantField(null=True)
    #: When it became finished, dead or skipped; None before.
    finished_at: Field[datetime | None] = InstantField(null=True)
    #: When the row was created.
    created_at: Field[datetime] = InstantField()
    #: When the row last changed.
    updated_at: Field[datetime] = InstantField()
    #: How long the last ended run took, in milliseconds.
    duration: Field[int | None] = BigNumberField(null=True)
    #: How long the job waited before its first run, in milliseconds.
    queue_time: Field[int | None] = BigNumberField(null=True)
    #: Class of the last error; None once the job has finished.
    error_type: Field[str | None] = NameField(max_length=255, null=True)
    #: Text of the last error; None once the job has finished.
    error_message: Field[str | None] = ProseField(null=True)
    #: Why the job is dead, a :class:`DeadReason`.
    dead_reason: Field[str | None] = NameField(max_length=32, null=True)
    #: What skipped the job, and why.
    skip_reason: Field[str | None] = ProseField(null=True)
    #: ``host:pid:thread`` of the last run; the thread is 0 before a run started ahead begins.
    worker: Field[str | None] = NameField(max_length=255, null=True)
    #: The process of the last run: :attr:`Worker.process`.
    process: Field[str | None] = NameField(max_length=16, null=True)
    #: The id of the current or last run: only that run may end the job.
    token: Field[str | None] = NameField(max_length=32, null=True)
    #: Positional arguments.
    args: Field[list[Any] | None] = JsonField(null=True)
    #: Keyword arguments.
    kwargs: Field[dict[str, Any] | None] = JsonField(null=True)
    #: The key of its critical section.
    section: Field[str | None] = KeyField(max_length=MAX_JID, null=True)
    #: Since when it has been waiting for its section, by the database's clock; otherwise None.
    waiting_since: Field[datetime | None] = InstantField(null=True)
    #: What the job stored about itself.
    meta: Field[dict[str, Any] | None] = JsonField(null=True)
    #: The last progress that the job reported.
    progress: Field[dict[str, Any] | None] = JsonField(null=True)
    #: The job that sent this one.
    parent_jid: Field[str | None] = KeyField(max_length=MAX_JID, null=True)
    #: The first job of its family.
    root_jid: Field[str | None] = KeyField(max_length=MAX_JID, null=True)
    #: The job that this one repeats.
    replay_of: Field[str | None] = KeyField(max_length=MAX_JID, null=True)
    #: The newest job that repeats this one.
    replayed_by: Field[str | None] = KeyField(max_length=MAX_JID, null=True)
    #: The message options that a new run needs.
    options: Field[dict[str, Any] | None] = JsonField(null=True)
    #: Why `args`, `kwargs` and `options` differ from what was sent; None if they do not.
    withheld: Field[str | None] = NameField(max_length=255, null=True)
    #: The message as it was sent, encrypted; only if something is withheld.
    sealed: Field[str | None] = ProseField(null=True)
    #: The id of its trace, if there is one.
    trace_id: Field[str | None] = NameField(max_length=64, null=True)
    #: When someone dismissed this dead job.
    dismissed_at: Field[datetime | None] = InstantField(null=True)
    #: What could not be stored as it was, and what was stored instead.
    note: Field[str | None] = ProseField(null=True)

    class Meta:
        table_name = "joblog_job"

    _own = frozenset({"id", "options", "process", "sealed", "token", "user_is_text"})
    _bond: ClassVar[Bond | None] = None

    @classmethod
    def join(cls, bond: Bond | None) -> None:
        """Attach the model to the tables of a log."""
        cls._bond = bond

    @classmethod
    def bond(cls) -> Bond | None:
        """Return the tables to which the model was attached last."""
        return cls._bond

    @classmethod
    def select(cls, *fields: Any) -> JobQuery[Self]:
        """Select jobs with the log's scopes; peewee's own ``select`` otherwise."""
        columns = fields or cls._meta.sorted_fields
        query: JobQuery[Self] = JobQuery(cls, columns, is_default=not fields)
        if cls._bond is not None and cls._bond.on_select is not None:
            return query.asked_after(cls._bond.on_select)
        return query

    @property
    def failures(self) -> Select[Failure]:
        """The runs that did not finish, and finished runs before the last, oldest first.

        A select of :class:`Failure`.
        """
        model = _bond_of(self).failure
        return model.select().where(model.jid == self.jid).order_by(model.id)

    @property
    def children(self) -> JobQuery[Self]:
        """The jobs that this job sent, oldest first."""
        job: Any = type(self)
        # The root is a condition too, because it has an index.
        mine = job.root_jid == (self.root_jid or self.jid), job.parent_jid == self.jid
        query: JobQuery[Self] = job.select().where(*mine).order_by(job.id)
        return query

    @property
    def parent(self) -> Self | None:
        """The job that sent this one; None if there is none, or it was pruned."""
        job: Any = type(self)
        if self.parent_jid is None:
            return None
        parent: Self | None = job.get_or_none(job.jid == self.parent_jid)
        return parent

    @property
    def root(self) -> Self | None:
        """The first job of its family, or the job itself; None if it was pruned."""
        job: Any = type(self)
        if self.root_jid is None:
            return self
        root: Self | None = job.get_or_none(job.jid == self.root_jid)
        return root

    @property
    def family(self) -> JobQuery[Self]:
        """All jobs of its family, oldest first: the first job, and every job that comes from it."""
        job: Any = type(self)
        root = self.root_jid or self.jid
        query: JobQuery[Self] = job.select().where((job.jid == root) | (job.root_jid == root))
        return query.order_by(job.id)

    @property
    def lines(self) -> Select[Line]:
        """The log lines of all its runs, in order: a select of :class:`Line`."""
        model = _bond_of(self).line
        return _in_order(model.select().where(model.jid == self.jid))


def _bond_of(row: Any) -> Bond:
    """Return a row's access to the other tables of its log."""
    bond: Bond | None = type(row)._bond
    if bond is None:
        raise InterfaceError(
            f"{type(row).__name__} is bound to no log: use the model of one, such as joblog.Job"
        )
    return bond


class Failure(_Row):
    """One run that did not finish, or that was not the last run of its job.

    A finished run is here if its message was enqueued again, during the run or later.
    """

    #: In order of insertion.
    id = BigAutoField()
    #: The job.
    jid: Field[str] = KeyField(max_length=MAX_JID)
    #: The run.
    token: Field[str] = NameField(max_length=32)
    #: Number of the attempt.
    attempt: Field[int] = NumberField()
    #: How it ended, an :class:`Outcome`.
    outcome: Field[str] = NameField(max_length=16)
    #: When it started.
    started_at: Field[datetime | None] = InstantField(null=True)
    #: When it ended; for an interrupted run, the last heartbeat of its worker.
    finished_at: Field[datetime | None] = InstantField(null=True)
    #: How long it took, in milliseconds.
    duration: Field[int | None] = BigNumberField(null=True)
    #: Class of the error.
    error_type: Field[str | None] = NameField(max_length=255, null=True)
    #: Text of the error.
    error_message: Field[str | None] = ProseField(null=True)
    #: The traceback, without variables.
    traceback: Field[str | None] = ProseField(null=True)
    #: ``host:pid:thread``.
    worker: Field[str | None] = NameField(max_length=255, null=True)

    class Meta:
        table_name = "joblog_failure"
        indexes = ((("jid", "token"), True), (("finished_at",), False))

    _bond: ClassVar[Bond | None] = None

    @classmethod
    def join(cls, bond: Bond | None) -> None:
        """Attach the model to the tables of a log."""
        cls._bond = bond

    @property
    def lines(self) -> Select[Line]:
        """The log lines of this run, in order: a select of :class:`Line`."""
        model = _bond_of(self).line
        return _in_order(model.select().where(model.jid == self.jid, model.token == self.token))


class Worker(_Row):
    """A worker process."""

    #: In order of appearance.
    id = BigAutoField()
    #: The unique id of the process.
    process: Field[str] = NameField(max_length=16, unique=True)
    #: Name of its host.
    host: Field[str] = NameField(max_length=255)
    #: Its process id on that host.
    pid: Field[int] = NumberField()
    #: The id of the host's boot, if the system has one.
    boot_id: Field[str | None] = NameField(max_length=64, null=True)
    #: How many jobs it runs at once.
    threads: Field[int] = NumberField()
    #: The names of its queues.
    queues: Field[list[str] | None] = JsonField(null=True)
    #: Milliseconds without a heartbeat after which it is considered gone.
    timeout: Field[int] = NumberField()
    #: When it started, by the database's clock, like all its times.
    started_at: Field[datetime] = InstantField()
    #: Its last heartbeat.
    heartbeat_at: Field[datetime] = InstantField()
    #: How far its host's clock was ahead of the database's, in milliseconds.
    skew: Field[int | None] = BigNumberField(null=True)
    #: When it ended; None while it works, or if it vanished.
    ended_at: Field[datetime | None] = InstantField(null=True)
    #: When its open runs were marked as lost; None while it lives.
    swept_at: Field[datetime | None] = InstantField(null=True)

    class Meta:
        table_name = "joblog_worker"


class Lock(_Row):
    """One slot of a key: of a critical section, or of a unique key."""

    #: In order of appearance.
    id = BigAutoField()
    #: ``section`` or ``unique``.  The other kinds are internal: ``rate``, ``limit``, ``wait``
    #: (reserved for a waiting job), ``former`` (which job replaced another), ``chore``, and
    #: ``floor`` (the row with the lowest possible fence).
    kind: Field[str] = NameField(max_length=8)
    #: The key.
    key: Field[str] = KeyField(max_length=MAX_JID)
    #: Its slot, counted from 0: a section with a limit of 3 has the slots 0, 1 and 2.
    slot: Field[int] = NumberField()
    #: The jid of the job that holds it, or ``host:pid:thread`` for a manual lock outside of
    #: jobs; None if it is free.
    owner: Field[str | None] = KeyField(max_length=MAX_JID, null=True)
    #: The run that holds it; None between two runs of a retried job.
    token: Field[str | None] = NameField(max_length=32, null=True)
    #: The process of that run: :attr:`Worker.process`.
    process: Field[str | None] = NameField(max_length=16, null=True)
    #: Grows with each holder of the key.
    fence: Field[int] = BigNumberField()
    #: The highest fence of the key so far, over all slots; stored on slot 0.
    last_fence: Field[int] = BigNumberField(default=0)
    #: How long it stays held after the last renewal, in milliseconds.
    ttl: Field[int] = BigNumberField()
    #: When it was taken, by the database's clock, like all its times.
    acquired_at: Field[datetime | None] = InstantField(null=True)
    #: When its lease expires unless it is renewed.
    expires_at: Field[datetime | None] = InstantField(null=True)

    @property
    def since(self) -> datetime | None:
        """When its holder took it."""
        at: datetime | None = self.acquired_at
        return at

    _own = frozenset({"id", "process", "token"})

    class Meta:
        table_name = "joblog_lock"
        indexes = ((("kind", "key", "slot"), True),)


class Line(_Row):
    """A line that a run of a job logged."""

    #: In the order in which they were written.
    id = BigAutoField()
    #: The job.
    jid: Field[str] = KeyField(max_length=MAX_JID)
    #: The run.
    token: Field[str] = NameField(max_length=32)
    #: Number of the attempt.
    attempt: Field[int] = NumberField()
    #: Number of the line within its run.
    number: Field[int] = NumberField()
    #: When it was logged.
    time: Field[datetime] = InstantField()
    #: Name of its level, such as ``INFO``; empty for the line that says how many were left out.
    level: Field[str] = NameField(max_length=16)
    #: Name of its logger.
    logger: Field[str] = NameField(max_length=255)
    #: The line, without its time and level.
    text: Field[str] = ProseField()

    class Meta:
        table_name = "joblog_line"
        indexes = ((("jid", "token", "number"), True),)


def _in_order(lines: Select[Line]) -> Select[Line]:
    line = lines.model
    return lines.order_by(line.time, line.attempt, line.number)


class Total(LentModel):
    """How many jobs ended with one outcome in one period: the source of charts.

    It outlives the jobs that it counts.
    """

    #: In order of insertion.
    id = BigAutoField()
    #: Start of the period.
    at: Field[datetime] = InstantField()
    #: Length of the period, in milliseconds.
    span: Field[int] = BigNumberField()
    #: Name of the actor.
    actor: Field[str] = NameField(max_length=255)
    #: Kind of work; empty if it has none.
    job_type: Field[str] = NameField(max_length=255)
    #: A final state, or the outcome of a run that did not finish.
    outcome: Field[str] = NameField(max_length=16)
    #: Class of the error, cut; empty if there was none.
    error_type: Field[str] = NameField(max_length=MAX_TOTAL_ERROR)
    #: 1 for the part that was deleted since, which is included in the row with 0.
    gone: Field[int] = NumberField(default=0)
    #: How many.
    count: Field[int] = BigNumberField()
    #: A histogram of durations: counts by bucket.
    durations: Field[dict[str, int] | None] = JsonField(null=True)
    #: A histogram of queue times, in the same form.
    queue_times: Field[dict[str, int] | None] = JsonField(null=True)

    class Meta:
        table_name = "joblog_total"
        indexes = ((("span", "at", "gone", "actor", "job_type", "outcome", "error_type"), True),)


class Mark(LentModel):
    """The position of one background task."""

    #: In order of insertion.
    id = BigAutoField()
    #: The name of the task.
    name: Field[str] = NameField(max_length=64, unique=True)
    #: A number; mostly an instant, in milliseconds since 1970.
    value: Field[int] = BigNumberField()

    class Meta:
        table_name = "joblog_mark"


class Action(_Row):
    """An action of a person on a job or a key."""

    #: In order of time.
    id = BigAutoField()
    #: When.
    at: Field[datetime] = InstantField()
    #: Who did it, as far as it is known.
    who: Field[str] = NameField(max_length=255)
    #: Such as ``requeue``, ``cancel``, ``dismiss``, ``unlock``, ``limit``, ``mute``, ``prune``,
    #: ``save_search``, ``delete_search``.
    what: Field[str] = NameField(max_length=32)
    #: The job, if it concerned one.
    jid: Field[str | None] = KeyField(max_length=MAX_JID, null=True)
    #: The key, if it concerned a lock or a limit.
    key: Field[str | None] = KeyField(max_length=MAX_JID, null=True)
    #: The reason, and the result.
    detail: Field[str | None] = ProseField(null=True)

    class Meta:
        table_name = "joblog_action"
        indexes = ((("jid", "id"), False),)


class AlertState(_Row):
    """The state of one alert: whether it is open, and which notices were sent."""

    #: In order of appearance.
    id = BigAutoField()
    #: The name of its rule, with the kind of problem if the rule has several.
    key: Field[str] = KeyField(max_length=MAX_JID, unique=True)
    #: Its name, for people.
    name: Field[str] = NameField(max_length=255)
    #: Whether it was open at the last check.
    is_open = BooleanField(default=False)
    #: Since when it is open; None if it is not.
    since: Field[datetime | None] = InstantField(null=True)
    #: The number of jobs, or of other things, that it concerns.
    count: Field[int] = BigNumberField(default=0)
    #: What was seen.
    summary: Field[str | None] = ProseField(null=True)
    #: Some of the jobs.
    jids: Field[list[str] | None] = JsonField(null=True)
    #: Words of a search that finds the jobs.
    search: Field[str | None] = ProseField(null=True)
    #: The job type of which a job should have finished; None for other alerts.
    expects: Field[str | None] = NameField(max_length=255, null=True)
    #: What it concerns other than jobs.
    subjects: Field[list[str] | None] = JsonField(null=True)
    #: The notice that is due: ``opened``, ``repeated`` or ``resolved``.
    pending: Field[str | None] = NameField(max_length=16, null=True)
    #: How often it was tried, when it is tried next, and why the last try failed.
    tries: Field[int] = NumberField(default=0)
    next_try_at: Field[datetime | None] = InstantField(null=True)
    error: Field[str | None] = ProseField(null=True)
    #: The last notice that was sent, and when.
    sent: Field[str | None] = NameField(max_length=16, null=True)
    sent_at: Field[datetime | None] = InstantField(null=True)
    #: Since when notices are counted, and how many there were.
    counted_since: Field[datetime | None] = InstantField(null=True)
    notices: Field[int] = NumberField(default=0)
    #: When its rule was first checked, and last; by the database's clock, like all its times.
    first_seen_at: Field[datetime] = InstantField()
    seen_at: Field[datetime] = InstantField()

    _own = frozenset({"counted_since", "id", "notices", "subjects"})

    class Meta:
        table_name = "joblog_alertstate"


class Deploy(_Row):
    """A mark: when something changed, such as a new version."""

    #: In order of insertion.
    id = BigAutoField()
    #: When, by the database's clock unless it was given.
    at: Field[datetime] = InstantField()
    #: Its name, such as ``v412``.
    name: Field[str] = NameField(max_length=255)
    #: Who marked it, as far as it is known.
    who: Field[str] = NameField(max_length=255)

    class Meta:
        table_name = "joblog_deploy"
        indexes = ((("at",), False),)


class SavedSearch(_Row):
    """A search that someone saved under a name, for everyone."""

    #: In order of insertion.
    id = BigAutoField()
    #: What people call it.
    name: Field[str] = KeyField(max_length=80, unique=True)
    #: The words.
    words: Field[str] = ProseField()
    #: Who saved it, as far as it is known.
    who: Field[str] = NameField(max_length=255)
    #: When, by the database's clock.
    at: Field[datetime] = InstantField()

    class Meta:
        table_name = "joblog_savedsearch"


class Mute(_Row):
    """A muted problem: known to someone, and not reported until a time."""

    #: In order of insertion.
    id = BigAutoField()
    #: The kind of the problem.
    kind: Field[str] = NameField(max_length=32)
    #: Which one of its kind.
    subject: Field[str] = KeyField(max_length=MAX_JID)
    #: Its title, for people.
    title: Field[str] = ProseField()
    #: Its count when it was muted: if it more than doubles, the problem is back.
    count: Field[int] = BigNumberField()
    #: When, by the database's clock, and until when.
    at: Field[datetime] = InstantField()
    until: Field[datetime] = InstantField()
    #: Who muted it, as far as it is known, and why.
    who: Field[str] = NameField(max_length=255)
    reason: Field[str] = ProseField()

    class Meta:
        table_name = "joblog_mute"
        indexes = ((("kind", "subject"), True),)


def _plain(value: Any) -> Any:
    """Return *value* in a form that JSON can hold."""
    if isinstance(value, datetime):
        return iso_text(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, dict, float, int, list, str)):
        return value
    return text_of(value)


def add_indexes(model: Any) -> None:
    """Declare the indexes of a job table, each for a frequent query."""
    meta: Any = model._meta
    # "What is in progress for this user?"  Such rows are few, so the index stays small.  SQLite
    # uses it only if the query has exactly this condition.
    active = f"state IN {literal_states(IN_PROGRESS).sql}"
    _add_index(model, "active", meta.combined["user_id"], model.job_type, where=active)
    # "Which jobs wait for this section, in order?"  Only waiting jobs pay for it.
    waiting = f"state IN {literal_states([State.WAITING]).sql}"
    _add_index(model, "line", model.section, model.started_at, model.waiting_since, where=waiting)
    # "Which jobs did this one send?"  Only jobs that another job sent pay for it.
    _add_index(model, "family", model.root_jid, where="root_jid IS NOT NULL")
    # All jobs, or those of a period.  New entries all go to its end, so it costs little.
    _add_index(model, "created", model.created_at)
    # The lists by actor, user, job type and error.  Only jobs that have one pay for it.
    _add_index(model, "actor", model.actor, model.created_at)
    listed = {"user": meta.combined["user_id"], "type": model.job_type, "error": model.error_type}
    for name, field in listed.items():
        has_one = f'"{field.column_name}" IS NOT NULL'
        _add_index(model, name, field, model.created_at, where=has_one)
    # Dead jobs that need attention, in groups: answered from the index alone.
    dead = f"state IN {literal_states([State.DEAD]).sql} AND dismissed_at IS NULL"
    grouped = model.finished_at, model.error_type, model.actor, model.id
    _add_index(model, "dead", *grouped, where=dead)
    # "The newest dead jobs": a page of them, and their number.
    _add_index(model, "state", model.state, model.created_at)
    # Ended jobs, which totals count and retention deletes.
    _add_index(model, "ended", model.state, model.finished_at, where="finished_at IS NOT NULL")


def _add_index(model: Any, name: str, *fields: Any, where: str | None = None) -> None:
    if where is not None and not dialect_of(model._meta.database).has_partial_indexes:
        # Without partial indexes, the index covers all rows, and begins with the state.
        first, *others = fields
        if where.startswith("state "):
            fields = (first, model.state, *others)
        where = None
    index = model.index(*fields, name=f"{model._meta.table_name}_{name}")
    model.add_index(index if where is None else index.where(SQL(where)))
