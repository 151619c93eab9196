"""Connections: those that the log opens for a query are returned, in any thread."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import dramatiq
import peewee
import psycopg
import pytest
from peewee import ForeignKeyField, Model, PostgresqlDatabase, SqliteDatabase
from playhouse.db_url import connect
from playhouse.pool import PooledPostgresqlDatabase

from dramatiq_joblog import DatabaseAwayError, Job, JobLog
from dramatiq_joblog.database import checkout

HOUR = 3_600_000


def _first_of(rows):
    for row in rows:
        return row
    return None


#: Each way to ask.
QUESTIONS = {
    "actions": lambda log: list(log.actions),
    "break": lambda log: _first_of(log.jobs),
    "break of iterator()": lambda log: _first_of(log.jobs.iterator()),
    "cancel_all": lambda log: log.cancel_all(log.jobs.lost()),
    "complete": lambda log: log.complete("actor"),
    "count": lambda log: log.jobs.count(),
    "counts": lambda log: log.counts(),
    "create": lambda log: log.core.tables.mark.create(name="mine", value=1),
    "create_tables": lambda log: log.create_tables(),
    "dead_groups": lambda log: log.dead_groups(),
    "delete": lambda log: (
        log.core.tables.mark.delete().where(log.core.tables.mark.name == "none").execute()
    ),
    "delete_instance": lambda log: log.core.tables.mark.create(
        name="gone", value=1
    ).delete_instance(),
    "dicts": lambda log: list(log.jobs.dicts()),
    "dismiss": lambda log: log.dismiss("a", who="ada"),
    "dismiss of a dead one": lambda log: log.dismiss("dead", who="ada"),
    "doctor": lambda log: log.doctor(),
    "exists": lambda log: log.jobs.in_progress().of_type("import").for_user(7).exists(),
    "failures": lambda log: list(log.get("a").failures),
    "family": lambda log: list(log.get("a").family),
    "first": lambda log: log.jobs.first(),
    "get": lambda log: log.get("a"),
    "get_or_none": lambda log: log.Job.get_or_none(log.Job.jid == "none"),
    "index": lambda log: log.jobs[0],
    "insert_many": lambda log: log.core.tables.mark.insert_many(
        [{"name": "many", "value": 1}]
    ).execute(),
    "iterator()": lambda log: list(log.jobs.iterator()),
    "len": lambda log: len(log.jobs),
    "lines": lambda log: list(log.get("a").lines),
    "list": lambda log: list(log.jobs),
    "lock": lambda log: log.lock("key").__enter__(),
    "locks": lambda log: list(log.locks),
    "now": lambda log: log.now(),
    "oldest": lambda log: log.oldest(),
    "page": lambda log: log.jobs.page(),
    "peek": lambda log: log.jobs.peek(n=2),
    "prune": lambda log: log.prune({"finished": HOUR}),
    "prune dry": lambda log: log.prune({"finished": HOUR}, dry_run=True),
    "raw": lambda log: list(log.core.tables.mark.raw("SELECT * FROM joblog_mark")),
    "record": lambda log: log.record("note", who="ada"),
    "save": lambda log: log.get("a").save(),
    "scalar": lambda log: log.jobs.select(log.Job.jid).scalar(),
    "scalars": lambda log: list(log.jobs.select(log.Job.jid).scalars()),
    "search": lambda log: list(log.search("state:dead")),
    "search of a jid": lambda log: list(log.search("a")),
    "slice": lambda log: log.jobs[:2],
    "stats": lambda log: log.stats(since=log.get("a").created_at),
    "tuples": lambda log: list(log.jobs.tuples()),
    "union": lambda log: list(log.jobs.dead().order_by() | log.jobs.lost().order_by()),
    "update": lambda log: log.core.tables.mark.update(value=2).execute(),
    "waiters of keys": lambda log: log.waiters_by_key(["key"]),
    "waiters": lambda log: list(log.waiters("key")),
    "workers": lambda log: list(log.workers),
}


@pytest.fixture
def filled(joblog, job_factory):
    """Return a log with a few jobs, whose thread has no connection."""
    for jid in ("a", "b", "c"):
        job_factory(jid=jid)
    job_factory(jid="dead", state="dead")
    joblog.release()
    return joblog


@pytest.fixture
def small_pool(postgres_url):
    """Return a log on the application's pool of three connections."""
    options = {"max_connections": 3, "prefer_psycopg3": True}
    log = JobLog(connect(postgres_url.replace("postgresql", "postgresql+pool"), **options))
    log.create_tables()
    yield log
    log.close()
    log.database.close_all()


def test_a_question_gives_its_connection_back(filled):
    """After any query outside a transaction, the thread has no connection."""
    left = []
    for name, ask in QUESTIONS.items():
        ask(filled)
        if not filled.database.is_closed():
            left.append(name)
            filled.database.close()

    assert left == []


def test_a_question_on_a_connection_of_the_applications(filled):
    """A connection that the application opened in its thread stays open, and the same."""
    filled.database.connect()
    mine = filled.database.connection()

    replaced = []
    for name, ask in QUESTIONS.items():
        ask(filled)
        if filled.database.connection() is not mine:
            replaced.append(name)

    assert replaced == []
    filled.database.close()


def test_a_question_inside_a_transaction(filled):
    """Inside the application's transaction, nothing is closed or committed."""
    # A lock is refused there; pruning and migrating commit as they go.
    for name in sorted({*QUESTIONS} - {"lock", "prune", "create_tables"}):
        with pytest.raises(ZeroDivisionError), filled.database.atomic():  # noqa: PT012
            filled.core.tables.mark.create(name="before", value=1)
            QUESTIONS[name](filled)
            assert filled.database.in_transaction(), name
            raise ZeroDivisionError
        assert filled.database.is_closed() or not filled.database.in_transaction(), name
        filled.database.close()
        assert (
            not filled.core.tables.mark.select()
            .where(filled.core.tables.mark.name == "before")
            .exists()
        ), name


def test_a_loop_over_jobs_leaves_nothing_open(filled):
    """A loop has its rows before the first iteration, and may query inside."""
    for job in filled.jobs:
        assert filled.database.is_closed()
        assert filled.get(job.jid).jid == job.jid


def test_a_generator_that_another_thread_ends(filled):
    """A generator that ends in another thread does not affect that thread's connection."""
    rows = filled.jobs.iterator()
    next(rows)

    def end():
        filled.database.connect()
        rows.close()
        still_open = not filled.database.is_closed()
        filled.database.close()
        return still_open

    with ThreadPoolExecutor(1) as other:
        assert other.submit(end).result()
    filled.database.close()


def test_generators_that_end_out_of_order(filled):
    """If two generators are open, the last one to end returns the connection."""
    short, long = filled.jobs.limit(1).iterator(), filled.jobs.iterator()

    seen = [next(short), *(next(long) for _ in range(2))]
    assert list(short) == []
    seen += long

    assert len(seen) == 5
    assert filled.database.is_closed()


def test_the_next_question_gives_back_what_a_generator_left(filled):
    """A connection whose generator ended in another thread is returned after the next query."""
    rows = filled.jobs.iterator()
    next(rows)
    with ThreadPoolExecutor(1) as other:
        other.submit(rows.close).result()

    assert filled.jobs.count() == 4
    assert filled.database.is_closed()


def test_the_jobs_of_a_user(sqlite_url):
    """The backref of a custom model gives its connection back too."""
    database = SqliteDatabase(sqlite_url.removeprefix("sqlite:///"))

    class User(Model):
        class Meta:
            database = None

    class ShopJob(Job):
        user = ForeignKeyField(User, backref="jobs", null=True)

        class Meta:
            table_name = "shop_job"

    User.bind(database)
    with database.connection_context():
        database.create_tables([User])
        user = User.create()
    log = JobLog(database, model=ShopJob)
    log.create_tables()

    assert list(user.jobs) == []
    assert user.jobs.count() == 0
    assert database.is_closed()


@pytest.mark.parametrize("make", [SqliteDatabase, PostgresqlDatabase])
def test_a_database_without_a_pool(make, request):
    """A passed-in database without a pool is closed after each query."""
    if make is SqliteDatabase:
        database = SqliteDatabase(request.getfixturevalue("sqlite_url").removeprefix("sqlite:///"))
    else:
        url = request.getfixturevalue("postgres_url")
        database = connect(url, prefer_psycopg3=True)
    log = JobLog(database)
    log.create_tables()

    assert list(log.jobs) == []
    assert log.counts()
    assert database.is_closed()
    log.close()


def test_closing_a_log_on_a_database_of_the_applications(sqlite_url):
    """Closing the log keeps connections that the application opened, even in a transaction."""
    database = SqliteDatabase(sqlite_url.removeprefix("sqlite:///"))
    log = JobLog(database)
    log.create_tables()
    log.core.writer.call(log.jobs.count)

    with database.connection_context():
        with database.atomic():
            log.close()
        assert log.jobs.count() == 0
        log.close()
        assert not database.is_closed()
    owned = JobLog(sqlite_url)
    with owned.database.atomic():
        owned.close()
    owned.close()
    assert owned.database.is_closed()


def test_a_connection_in_the_place_of_a_closed_one(joblog, job_factory):
    """A connection that the application opens stays open, even after one of the log."""
    job_factory()
    database = joblog.database
    for _ in range(20):
        # Opened for a question that ends within a transaction, so that the next would close it.
        rows = joblog.jobs.iterator()
        next(rows)
        with database.atomic():
            rows.close()
        database.close()

        database.connect()
        joblog.jobs.count()
        assert not database.is_closed()
        database.close()


def test_ten_threads_share_a_pool_of_three(small_pool):
    """Threads wait for a free connection of a small pool: none fails."""
    begin = threading.Barrier(10)

    def ask():
        begin.wait()
        return [(small_pool.jobs.count(), list(small_pool.jobs.dead())) for _ in range(10)]

    with ThreadPoolExecutor(10) as threads:
        answers = [future.result() for future in [threads.submit(ask) for _ in range(10)]]

    assert answers == [[(0, [])] * 10] * 10


@pytest.mark.full
def test_a_worker_of_eight_threads_on_a_pool_of_three(small_pool, make_broker, worker):
    """Jobs that query the log all finish with a pool smaller than the number of threads."""
    broker = make_broker(joblog=small_pool)

    @dramatiq.actor(max_retries=0)
    def work():
        assert not small_pool.jobs.in_progress().of_type("import").exists()
        list(small_pool.jobs.started())

    with worker(broker, worker_threads=8):
        for _ in range(40):
            work.send()
        broker.join("default", timeout=60_000)

    small_pool.core.writer.flush()
    assert small_pool.jobs.finished().count() == 40


def test_a_pool_with_nothing_free(small_pool, monkeypatch):
    """An exhausted pool is reported as an unavailable database, with the cure."""
    monkeypatch.setattr(checkout, "FREE_WITHIN", 50)
    kept, done = threading.Barrier(4), threading.Event()

    def keep():
        small_pool.database.connect()
        kept.wait()
        done.wait()
        small_pool.database.close()

    with ThreadPoolExecutor(3) as threads:
        futures = [threads.submit(keep) for _ in range(3)]
        kept.wait()
        with pytest.raises(DatabaseAwayError, match="raise its max_connections"):
            small_pool.jobs.first()
        done.set()
        [future.result() for future in futures]
    assert small_pool.jobs.first() is None


@pytest.mark.full
def test_requests_do_not_pile_up_connections(postgres_url):
    """Two hundred requests, each on a separate thread, leave no connection behind."""
    log = JobLog(postgres_url)
    log.create_tables()

    for _ in range(20):
        request = [threading.Thread(target=log.jobs.dead().count) for _ in range(10)]
        for thread in request:
            thread.start()
        for thread in request:
            thread.join()

    with psycopg.connect(postgres_url, autocommit=True) as connection:
        ((number,),) = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        ).fetchall()
    # The pool's, of at most ten that asked at once, and the one that counts.
    assert number <= 11
    assert isinstance(log.database, PooledPostgresqlDatabase)
    log.close()


# The database is unavailable


@pytest.fixture(params=["sqlite:////no/such/folder/jobs.db", "postgresql://ada@127.0.0.1:1/x"])
def unavailable(request):
    """Return a log with an unavailable database."""
    log = JobLog(request.param)
    yield log
    log.close()


def test_a_question_while_the_database_is_unavailable(unavailable):
    """Every query raises one exported error if the database is unavailable."""
    for name in sorted({*QUESTIONS} - {"doctor"}):
        with pytest.raises(DatabaseAwayError) as failed:
            QUESTIONS[name](unavailable)
        assert failed.value.__cause__ is not None, name
        assert unavailable.database.is_closed(), name


@pytest.mark.parametrize(
    "act",
    [
        lambda log: log.cancel("a"),
        lambda log: log.unlock("key", fence=1, reason="gone", who="ada"),
        lambda log: log.reading(timeout=100).__enter__(),
    ],
    ids=["cancel", "unlock", "reading"],
)
def test_an_act_while_the_database_is_unavailable(unavailable, act):
    """Actions raise the same error."""
    with pytest.raises(DatabaseAwayError):
        act(unavailable)


def test_a_send_and_a_requeue_while_the_database_is_unavailable(unavailable, make_broker):
    """A unique message and a requeue raise the same error, and nothing is sent."""
    broker = make_broker(joblog=unavailable)

    @dramatiq.actor(unique="key")
    def work():
        pass

    with pytest.raises(DatabaseAwayError):
        work.send()
    with pytest.raises(DatabaseAwayError):
        unavailable.requeue("a")
    assert broker.queues["default"].qsize() == 0


def test_tables_that_are_missing(sqlite_url):
    """A log without tables is unavailable, and the error says so."""
    with pytest.raises(DatabaseAwayError) as failed:
        JobLog(sqlite_url).get("a")

    assert failed.value.no_tables


def test_a_question_that_the_database_refuses(filled):
    """An error in the application's own query stays peewee's error."""
    with pytest.raises(peewee.DatabaseError) as failed:
        list(filled.jobs.where(peewee.SQL("no such thing (")))

    assert not isinstance(failed.value, DatabaseAwayError)
    assert filled.database.is_closed()
