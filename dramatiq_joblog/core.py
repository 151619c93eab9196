"""The parts of a log: its tables, its writer, and its background tasks."""

from __future__ import annotations

import difflib
import hashlib
import os
import tempfile
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic

from .admin import audit as people
from .admin.doctor import DEFAULT_TIMEOUT, Doctor
from .admin.maintenance import INTERVAL, Chores
from .admin.retention import Retention
from .admin.standstill import MAX_UNSERVED
from .alerts.alerting import Alerting, AlertSettings
from .alerts.on_dead import DeadCaller
from .asking.aside import Aside
from .asking.watcher import Watcher
from .broker.worker_process import WorkerProcess
from .database.address import Address
from .database.checkout import close_idle, transaction
from .database.url import describe
from .errors import ConfigurationError, RequeueError
from .payload.values import shown
from .recording.current import asked_outside, running
from .recording.exclusive import Sections
from .recording.newest import Newest
from .recording.outage import POLICIES
from .recording.spool import Spool
from .recording.transitions import Transitions
from .recording.writer import Writer
from .schema.query import J
from .schema.tables import Tables, bind_tables, own_fields
from .statistics.rollups import Totals
from .statistics.watermarks import Marks

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from peewee import Database

    from .admin.problem import Problem
    from .admin.retention import Keep
    from .broker.requeue import Sender
    from .locking.locks import Locks
    from .payload.contents import Contents
    from .payload.encryption import Seal
    from .payload.redaction import Redactor
    from .schema.models import Action

#: The maximum interval of checks whether alert rules are due, in milliseconds.
_ALERTS_LOOKED_AT = 5_000


class Core(Generic[J]):
    """The parts of one log, for the middleware, the dashboard and the command line.

    Applications use :class:`JobLog`.

    Parameters:
      database: The peewee database.
      model: The job model.
      owned: Whether the log created the database object, and so owns its connections.
      job_types: The allowed values of ``job_type``; None allows any.
      contents: How the contents of jobs are stored.
      spool: The folder for events during an outage; None for the user's default.
      on_outage: What happens to events while the database is unavailable.
      keep: Milliseconds that jobs are kept, by final state.
      keep_types: Different times for some job types.
      alerts: The rules of alerts, and the receivers of notices; None for none.
      on_dead: Called with each job that becomes dead.

    Raises:
      ConfigurationError: If a value is invalid.
    """

    def __init__(
        self,
        database: Database,
        *,
        model: type[J],
        owned: bool,
        job_types: Sequence[str] | None,
        contents: Contents,
        spool: str | os.PathLike[str] | None,
        on_outage: str = "spool",
        keep: Keep | None = None,
        keep_types: Mapping[str, Keep | int | None] | None = None,
        alerts: AlertSettings | None = None,
        on_dead: Callable[[J], Any] | None = None,
    ) -> None:
        if on_outage not in POLICIES:
            raise ConfigurationError(f"on_outage={on_outage!r} is not known; use one of {POLICIES}")
        self.database = database
        self._owned = owned
        self.tables: Tables[J] = bind_tables(model, database, on_select=self.write_own_start)
        self._contents = contents
        self._job_types = job_types
        #: The fields that a custom model adds, by name.
        self.own_fields: dict[str, Any] = own_fields(self.tables.job)
        self.transitions = Transitions(self.tables)
        marks = Marks(self.tables.mark)
        #: The totals of ended jobs by period.
        self.totals = Totals(self.tables, marks)
        retention = Retention(self.tables, totals=self.totals, keep=keep, keep_types=keep_types)
        #: The background tasks.
        self.chores = Chores(self.totals, retention, self.locks)
        #: Events on this host's disk while the database is unavailable.
        folder = _default_spool(self.tables.job) if spool is None else _folder(spool)
        # A job may change the working directory later.
        self.spool = Spool(folder.absolute())
        #: The statements that write events, with the keys of their jobs.
        self.sections = Sections(self.transitions)
        #: Writes the events from the middleware, in batches.
        self.writer = Writer(self.sections, self.spool, on_outage=on_outage)
        #: The statements on unique keys that keep the newest message.
        self.newest = Newest(self.transitions)
        #: Checks the rules, and sends notices.
        self.alerting = Alerting(self, self.locks, marks, alerts or AlertSettings())
        self._dead_caller: DeadCaller | None = None
        if on_dead is not None:
            self._dead_caller = DeadCaller(self.tables.job, on_dead)
            self.writer.on_written(self._dead_caller.written)
        looked_at = max(100, min(self.alerting.every // 3, _ALERTS_LOOKED_AT))
        #: The presence of this process in the log while it has workers.
        self.worker_process = WorkerProcess(
            self.tables,
            writer=self.writer,
            locks=self.locks,
            upkeep=[(self.chores, INTERVAL), (self.alerting, looked_at)],
        )
        #: Polls the jobs that callers wait for.
        self.watcher = Watcher(self.tables)
        #: Runs queries for event loops.
        self.aside = Aside(database)
        self._sender: Sender | None = None

    def moved(
        self,
        database: Database,
        *,
        owned: bool,
        model: type[J],
        spool: str | os.PathLike[str],
    ) -> Core[J]:
        """Return the parts of a log with the same settings on another database, without alerts."""
        return Core(
            database,
            model=model,
            owned=owned,
            job_types=self._job_types,
            contents=self._contents,
            spool=spool,
        )

    @property
    def owned(self) -> bool:
        """Whether the log created its database object."""
        return self._owned

    @property
    def redactor(self) -> Redactor:
        """Removes secrets from stored values."""
        return self._contents.redactor

    @property
    def seal(self) -> Seal | None:
        """Encrypts values that are not shown; None without encryption."""
        return self._contents.seal

    @property
    def store_args(self) -> bool:
        """Whether the arguments of jobs are stored."""
        return self._contents.store_args

    @property
    def locks(self) -> Locks:
        """The statements on keys."""
        return self.transitions.locks

    @property
    def name(self) -> str:
        """The kind and name of the database, for display, without its password."""
        return describe(self.database)

    def check_job_type(self, job_type: Any, where: str) -> str | None:
        """Return *job_type* as a string, or None.

        *job_type* is a string, a ``str`` enum member, or None; *where* names the declaring actor or
        message in the error's text.

        Raises:
          ConfigurationError: If it is not one of the log's job types.
        """
        if job_type is None:
            return None
        if not isinstance(job_type, str):
            raise ConfigurationError(
                f"{where} has job_type={job_type!r}: a text or a str enum member is needed"
            )
        text = str(job_type.value) if isinstance(job_type, Enum) else job_type
        if self._job_types is not None and text not in self._job_types:
            near = difflib.get_close_matches(text, self._job_types, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"use one of {self._job_types}"
            raise ConfigurationError(f"{where} has the unknown job_type {text!r}; {hint}")
        return text

    def problems(
        self,
        *,
        patience: int = MAX_UNSERVED,
        timeout: int = DEFAULT_TIMEOUT,
        muted: bool = False,
    ) -> list[Problem]:
        """Return the current problems, like :meth:`JobLog.problems`."""
        found = Doctor(self, patience=patience, timeout=timeout).problems()
        return found if muted else [problem for problem in found if problem.muted is None]

    def record(
        self,
        what: str,
        *,
        who: str,
        jid: str | None = None,
        key: str | None = None,
        detail: str | None = None,
    ) -> Action:
        """Record an action, like :meth:`JobLog.record`."""
        detail = None if detail is None else self.redactor.text(detail)
        with transaction(self.database):
            action: Action = people.record(
                self.tables.action, what, who=who, jid=jid, key=key, detail=detail
            )
        return action

    # Requeueing

    @property
    def sender(self) -> Sender | None:
        """The sender that requeues jobs; None if this process has no broker of the log."""
        return self._sender

    def send_by(self, sender: Sender) -> Sender:
        """Return the log's sender; *sender* becomes it, if there is none."""
        if self._sender is None:
            self._sender = sender
        return self._sender

    def checked_sender(self, jid: str = "") -> Sender:
        """Return the log's sender.

        Raises:
          RequeueError: If this process has no broker of the log; *jid* is for its text, and empty
            for several jobs.
        """
        if self._sender is None:
            raise RequeueError(
                jid,
                "this process has no broker with a JobLogMiddleware of this log; import the "
                "module that sets it up (on the command line: --app module:joblog)",
            )
        return self._sender

    # Connections

    def settle(self) -> None:
        """Make the events that this process has submitted visible to the next query."""
        if self._owned and not self.database.is_closed() and not self._is_usable():
            # The server was restarted: let the next query open a new connection.
            pool: Any = self.database
            pool.manual_close()
        if self.may_wait():
            self.writer.flush(timeout=2.0)

    def may_wait(self) -> bool:
        """Return whether this thread may block on the writer."""
        # Inside a transaction, SQLite's writer would wait for this thread: a deadlock.
        return self.database.is_closed() or not self.database.in_transaction()

    def write_own_start(self) -> None:
        """Write the deferred start of the job that runs here, because it queries the log."""
        run = running.get()
        if run is None:
            # Another middleware may decide by the answer, before the job runs.
            if (listener := asked_outside.get()) is not None:
                listener()
            return
        run.note_question()
        start = run.take_start()
        if start is None:
            return
        start.drop()
        committed = self.writer.put(start.event, awaited=True)
        if self.may_wait():
            committed.wait()

    def release(self) -> None:
        """Return this thread's connection to the pool, if the log created its database."""
        if self._owned and not self.database.is_closed() and not self.database.in_transaction():
            self.database.close()

    def close(self) -> None:
        """Write submitted events, end the threads, and close idle connections."""
        self.watcher.close()
        self.chores.stop()
        self.alerting.stop()
        self.writer.close()
        if self._dead_caller is not None:
            self._dead_caller.close()
        self.release()
        if self._owned:
            close_idle(self.database)

    def _is_usable(self) -> bool:
        connection = self.database.connection()
        return not getattr(connection, "closed", False) and self.database.is_connection_usable()


def _folder(spool: Any) -> Path:
    if isinstance(spool, (str, os.PathLike)) and str(spool).strip() and "\0" not in str(spool):
        return Path(spool)
    raise ConfigurationError(f"spool={shown(spool)} is not a folder: give the path of one, or None")


def _default_spool(job: Any) -> Path:
    """Return the folder of this user for this log, the same for all processes of the host."""
    meta = job._meta
    database = meta.database
    address = Address.of_peewee(database) or Address("", "")
    # Not resolved: different names of the same host or socket have different folders.
    host = str(database.connect_params.get("host"))
    place = [address.kind, address.name, host, address.port, meta.table_name]
    digest = hashlib.sha256("\n".join(place).encode()).hexdigest()[:12]
    state = os.environ.get("XDG_STATE_HOME")
    try:
        base = Path(state) if state else Path.home() / ".local" / "state"
    except RuntimeError:
        # This user has no home directory.
        base = Path(tempfile.gettempdir()) / f"state-of-{os.getuid()}"
    return base / "dramatiq_joblog" / digest
