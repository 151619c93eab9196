"""JobLog: one log, bound to one database."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import os
import tempfile
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic

from peewee import Database, PeeweeException, SqliteDatabase

from .admin.cancel import Cancelling
from .admin.doctor import Doctor
from .admin.maintenance import INTERVAL, Chores
from .admin.retention import Retention
from .asking import Asking
from .broker.worker_process import WorkerProcess
from .database.checkout import checked_out
from .database.clock import database_now
from .database.url import describe, open_database
from .errors import ConfigurationError, DatabaseAwayError, JobLogError, JobNotFound
from .locking.by_hand import HeldByHand
from .locking.locks import DEFAULT_TTL, SECTION, Claim, fold_key
from .payload.encryption import Seal
from .payload.redaction import Redactor
from .payload.sanitize import fold_jid
from .recording.current import running
from .recording.exclusive import Sections
from .recording.heartbeat import here
from .recording.spool import Spool
from .recording.transitions import Transitions
from .recording.writer import POLICIES, Writer
from .replaying import Replaying
from .schema.migrations import migrate
from .schema.models import Job
from .schema.query import J
from .schema.tables import Tables, bind_tables, own_fields
from .statistics.rollups import Totals
from .statistics.watermarks import Marks

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from .admin.doctor import Finding
    from .admin.retention import Keep
    from .database.queries import Select
    from .database.url import DatabaseURL
    from .locking.locks import Holder
    from .recording.writer import OnOutage
    from .schema.models import Action, Failure, Line, Lock, Worker
    from .schema.query import JobQuery


class JobLog(Asking[J], Cancelling[J], Replaying[J], Generic[J]):
    """The log of jobs in one database: where they are asked for, and where they are written.

    Making one opens nothing: no connection, no thread, no file.  Two logs, on the same or on
    different databases, do not meet.

    Example:
      >>> joblog = JobLog("sqlite:///jobs.db")
      >>> joblog.create_tables()
      >>> joblog.jobs.dead().count()
      0

    Parameters:
      database: A URL (``sqlite:///jobs.db``, ``postgresql://user@host/name``), or a peewee
        ``Database``.  A URL may be an object, as SQLAlchemy's or pydantic's, and may name a
        driver, as ``postgresql+asyncpg://``: the log uses its own.
      model: The job model: :class:`Job`, or a subclass of it with columns of your own.
      job_types: The enum, or the texts, that ``job_type`` may be.  None allows any text.
      keep: Milliseconds that jobs are kept after their end, by final state, as
        ``{"finished": 7 * 86_400_000}``; those of other states are kept for ever.  Workers
        delete what is older, one process at a time; totals are kept.
      keep_types: For some job types other times, by state or one for all, and None for ever:
        ``{"audit": None}``.
      on_outage: What becomes of events while the database is away: ``"spool"`` keeps them on
        this host's disk and replays them, ``"block"`` makes jobs wait, ``"drop"`` counts them.
      redact: What is taken out of stored arguments and ``meta`` beside passwords, tokens and
        the like: more names; or a callable that is given a name and its value and returns what
        to keep; or False to take out nothing.
      spool: The folder to keep them in; by default one in the user's state folder.
      store_args: Whether the arguments of jobs are kept.
      seal_key: A Fernet key, or several with the newest first: arguments that are not kept as
        they were sent are kept encrypted too, so that their jobs can be run again.

    Raises:
      ConfigurationError: If the database cannot be used, or the model's own columns could
        not be filled.
    """

    def __init__(
        self,
        database: DatabaseURL | Database,
        *,
        model: type[J] = Job,  # type: ignore[assignment]
        job_types: Any = None,
        keep: Keep | None = None,
        keep_types: Mapping[str, Keep | int | None] | None = None,
        on_outage: OnOutage = "spool",
        redact: Any = None,
        spool: str | os.PathLike[str] | None = None,
        store_args: bool = True,
        seal_key: str | bytes | Sequence[str | bytes] | None = None,
    ) -> None:
        #: The peewee database.
        self.database: Database = open_database(database)
        self._owned = not isinstance(database, Database)
        #: The models of its tables.
        self.tables: Tables[J] = bind_tables(model, self.database, on_select=self._write_own_start)
        #: The job model, bound to the database.
        self.Job: type[J] = self.tables.job
        #: The other models, bound to the database.
        self.Failure: type[Failure] = self.tables.failure
        self.Worker: type[Worker] = self.tables.worker
        self.Lock: type[Lock] = self.tables.lock
        self.Line: type[Line] = self.tables.line
        self.Total: Any = self.tables.total
        self.Action: type[Action] = self.tables.action
        self.Mark: Any = self.tables.mark
        self.store_args = store_args
        #: Takes secrets out of what is stored.
        self.redactor = Redactor(redact)
        #: Encrypts what is not shown.
        self.seal = Seal(seal_key) if seal_key is not None else None
        self._job_types = _texts_of(job_types)
        self._own_fields = own_fields(self.Job)
        self.transitions = Transitions(self.tables)
        marks = Marks(self.tables.mark)
        self.transitions.note_late = marks.note_late
        #: What ended, counted by spans of time.
        self.totals = Totals(self.tables, marks)
        retention = Retention(
            self.tables,
            totals=self.totals,
            keep=keep,
            keep_types=keep_types,
        )
        #: What the log does for itself.
        self.chores = Chores(self.totals, retention, self.transitions.locks)
        #: What this host keeps while the database is away.
        folder = Path(spool) if spool is not None else _default_spool(self.Job)
        # A job may change the process's folder later.
        self.spool = Spool(folder.absolute())
        #: Where the middleware hands over what happens.
        self.writer = Writer(
            Sections(self.transitions),
            self.spool,
            on_outage=_one_of(POLICIES, on_outage=on_outage),
        )
        locks = self.transitions.locks
        #: This process, while it has workers.
        self.worker_process = WorkerProcess(
            self.tables,
            writer=self.writer,
            locks=locks,
            upkeep=self.chores,
            upkeep_every=INTERVAL,
        )
        locks.renew_within = lambda within: self.writer.at_least_every(within, locks.renew)

    @property
    def jobs(self) -> JobQuery[J]:
        """All jobs, newest first: refine it with scopes and with peewee's own methods.

        What this process sent before is in it.
        """
        self._settle()
        job = self.Job
        query: JobQuery[J] = job.select().order_by(job.created_at.desc(), job.id.desc())
        return query

    @property
    def locks(self) -> Select[Lock]:
        """The keys that are held now, by sections and by hand: a select of :class:`Lock`.

        Each row also has ``lease_left``, the milliseconds until it runs out unless it is
        renewed, by the database's clock.
        """
        lock, now = self.Lock, database_now(self.database)
        return (
            lock.select(lock, (lock.expires_at - now).alias("lease_left"))
            .where(lock.kind == SECTION, lock.owner.is_null(False), lock.expires_at > now)
            .order_by(lock.acquired_at, lock.id)
        )

    def waiters(self, key: str) -> JobQuery[J]:
        """Return the jobs that wait for a section of *key*, the one that is next first."""
        query: JobQuery[J] = self.transitions.locks.waiters.all_of(fold_key(key))
        return query

    def lock(
        self, key: str, *, limit: int = 1, ttl: int = DEFAULT_TTL, wait: int | None = None
    ) -> HeldByHand:
        """Hold a key until the end of the block; it is renewed for as long as that takes.

        In a coroutine it is ``async with joblog.lock(...)``, which blocks no event loop.
        Whoever holds it does not come in a second time: a block inside the block waits for
        itself.  Jobs that wait longer for the key come in first.

        Example:
          >>> with joblog.lock("nightly report") as lease:
          ...     lease.fence
          1

        Parameters:
          key: The key, of the same kind as those of ``exclusive``.
          limit: How many may hold it at once.
          ttl: Milliseconds that it stays held if this process vanishes.
          wait: Milliseconds to wait for it; None not to wait.

        Raises:
          LockNotAcquired: If another holds it, for all that time.
          ConfigurationError: Inside a transaction of the same database: nobody else could see
            what was done under the lock before it is free again.  With *wait*, and not by
            ``async with``, inside a running event loop.
          DatabaseAwayError: If the database cannot be asked.
        """
        locks = self.transitions.locks

        def claim(token: str) -> Claim:
            self._refuse_in_transaction(key)
            run = running.get()
            return Claim(
                SECTION,
                fold_key(key),
                here() if run is None else run.jid,
                token,
                ttl,
                process=locks.process,
                limit=limit,
                by_hand=True,
            )

        return HeldByHand(locks, self.writer, key, claim, wait or 0)

    def _refuse_in_transaction(self, key: str) -> None:
        if not self.database.is_closed() and self.database.in_transaction():
            raise ConfigurationError(
                f"lock {key!r} is taken inside a transaction, whose end nobody would wait for: "
                "take the lock first, and begin the transaction inside it"
            )

    def refuse_behind_transaction(self, key: str) -> None:
        """Refuse to claim a key where the claim would wait for this very thread.

        Raises:
          ConfigurationError: Inside a transaction of a SQLite database, which one connection at
            a time may write to.
        """
        if isinstance(self.database, SqliteDatabase) and not self._may_wait():
            raise ConfigurationError(
                f"a message with the unique key {key!r} is sent inside a transaction of the log's "
                "SQLite database, for whose end its claim would wait: send it after the "
                "transaction, or give the log a database file of its own"
            )

    def claim(self, claim: Claim) -> Holder | None:
        """Take a key, or return who holds it."""
        locks = self.transitions.locks

        def take() -> Holder | None:
            if locks.take(claim) is not None:
                return None
            locks.bound(claim.kind, claim.key)
            return locks.holder(claim.kind, claim.key)

        try:
            holder: Holder | None = self.writer.call(take)
        except BaseException:
            # It may have been taken all the same.
            claim.given_up = True
            self.writer.post(lambda: locks.release(claim.kind, claim.key, claim.owner, claim.token))
            raise
        return holder

    @property
    def workers(self) -> Select[Worker]:
        """All worker processes that were seen lately, newest first: a select of :class:`Worker`."""
        return self.Worker.select().order_by(self.Worker.id.desc())

    @property
    def name(self) -> str:
        """The kind and the name of the database, for people, without its password."""
        return describe(self.database)

    def doctor(self, broker: Any = None) -> list[Finding]:
        """Look for what is wrong with the log now: its database, its workers, its files.

        It only reads, asks a dozen questions, and does not raise when the database is away.

        Example:
          >>> all(finding.ok for finding in joblog.doctor())
          True

        Parameters:
          broker: The broker with the log's middleware, if that is to be looked at too.
        """
        return Doctor(self, broker).findings()

    @property
    def own_fields(self) -> dict[str, Any]:
        """The fields that a model of the user's own adds, by name."""
        return self._own_fields

    def get(self, jid: str) -> J:
        """Return the job of *jid*, an instance of the log's job model.

        Raises:
          JobNotFound: If the log has none.
        """
        self._settle()
        row = self.Job.get_or_none(self.Job.jid == fold_jid(jid))
        if row is None:
            raise JobNotFound(jid)
        return row

    def now(self) -> datetime:
        """Return the database's time: leases and signs of life are told by it."""
        text = f"SELECT {database_now(self.database).sql}"
        with checked_out(self.database):
            ((now,),) = self.database.execute_sql(text).fetchall()
        return datetime.fromtimestamp(now / 1000, timezone.utc)

    @property
    def models(self) -> tuple[Any, ...]:
        """The models of the log's tables, jobs first."""
        return tuple(self.tables)

    def create_tables(self) -> None:
        """Create the tables, or bring them to this version; safe to repeat and to race.

        Raises:
          DatabaseAwayError: If the database is unavailable.
          JobLogError: If it refuses.
        """
        try:
            with checked_out(self.database):
                if isinstance(self.database, SqliteDatabase):
                    # Readers and the writer do not wait for each other; it stays with the file.
                    self.database.execute_sql("PRAGMA busy_timeout = 30000")
                    self.database.execute_sql("PRAGMA journal_mode = WAL")
                migrate(self.tables)
        except (DatabaseAwayError, PeeweeException) as e:
            kind = DatabaseAwayError if isinstance(e, DatabaseAwayError) else JobLogError
            raise kind(
                f"the log's tables could not be made on {describe(self.database)}: "
                f"{str(e).strip()}; is the database up, and may this user create tables?"
            ) from e

    def check_job_type(self, job_type: Any, where: str) -> str | None:
        """Return the text of *job_type*.

        *job_type* is a text, a ``str`` enum member, or None; *where* names what declares it,
        for the error's text.

        Raises:
          ConfigurationError: If it is none of the log's job types.
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

    def release(self) -> None:
        """Give back a connection that this thread opened itself, if the log made its database.

        What the log opens to answer a question it gives back by itself.
        """
        if self._owned and not self.database.is_closed() and not self.database.in_transaction():
            self.database.close()

    def close(self) -> None:
        """Write what is handed over and close connections that idle; the log stays usable.

        A database that was handed in keeps its pool, and what the application opened of it.
        """
        self.chores.stop()
        self.writer.close()
        self.release()
        if self._owned:
            pool: Any = self.database
            pool.close_idle()

    def _write_own_start(self) -> None:
        """Let the job that runs here be seen in the log, as it asks: its start may be to come."""
        run = running.get()
        start = None if run is None else run.take_start()
        if start is None:
            return
        start.drop()
        committed = self.writer.put(start, awaited=True)
        if self._may_wait():
            committed.wait()

    def _settle(self) -> None:
        if self._owned and not self.database.is_closed() and not self._is_usable():
            # The server went away and came back: what asks next has a new connection.
            pool: Any = self.database
            pool.manual_close()
        if self._may_wait():
            self.writer.flush(timeout=2.0)

    def _may_wait(self) -> bool:
        # Inside a transaction of SQLite the writer would wait for this very thread.
        return self.database.is_closed() or not self.database.in_transaction()

    def _is_usable(self) -> bool:
        connection = self.database.connection()
        return not getattr(connection, "closed", False) and self.database.is_connection_usable()


@contextlib.contextmanager
def moved(
    log: JobLog[Any], database: DatabaseURL | Database, *, model: Any = Job, spool: Path
) -> Iterator[JobLog[Any]]:
    """Have a log on another database for the block, for whatever holds it: for tests.

    Its settings stay, and a database that was handed in stays the application's own.
    """
    there: JobLog[Any] = JobLog(database, model=model, store_args=log.store_args, spool=spool)
    there.redactor, there.seal = log.redactor, log.seal
    there._job_types = log._job_types
    if isinstance(database, Database):
        there._owned = log._owned
    before = vars(log).copy()
    vars(log).update(vars(there))
    try:
        yield log
    finally:
        vars(log).clear()
        vars(log).update(before)


def _default_spool(job: Any) -> Path:
    """Return the folder of this user for this log, the same for all processes of the host."""
    meta = job._meta
    database = meta.database
    place = [str(database.database), str(database.connect_params.get("host")), meta.table_name]
    if isinstance(database, SqliteDatabase):
        place[0] = str(Path(place[0]).absolute())
    digest = hashlib.sha256("\n".join(place).encode()).hexdigest()[:12]
    state = os.environ.get("XDG_STATE_HOME")
    try:
        base = Path(state) if state else Path.home() / ".local" / "state"
    except RuntimeError:
        # This user has no home.
        base = Path(tempfile.gettempdir()) / f"state-of-{os.getuid()}"
    return base / "dramatiq_joblog" / digest


def _one_of(known: tuple[str, ...], **named: str) -> str:
    [(name, value)] = named.items()
    if value not in known:
        raise ConfigurationError(f"{name}={value!r} is not known; use one of {known}")
    return value


def _texts_of(job_types: Any) -> list[str] | None:
    if job_types is None:
        return None
    return [str(getattr(t, "value", t)) for t in job_types]
