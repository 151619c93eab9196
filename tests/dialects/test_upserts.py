"""Many rows in one statement: every kind of value, any number of rows, any set of columns."""

from __future__ import annotations

import datetime as dt
import decimal
import math
import uuid

import peewee
import psycopg
import pytest
import tiers

from dramatiq_joblog import Job, JobLog
from dramatiq_joblog.recording.events import Ended, Enqueued, Started

NOW = 1_800_000_000_000


class _Rich(Job):
    """A job with a column of each kind that can be stored as JSON."""

    amount = peewee.DecimalField(max_digits=12, decimal_places=3, null=True)
    due = peewee.DateTimeField(null=True)
    good = peewee.BooleanField(null=True)
    ratio = peewee.DoubleField(null=True)
    reference = peewee.UUIDField(null=True)


class _Raw(Job):
    """A job with a column that has no JSON form."""

    picture = peewee.BlobField(null=True)


def row(n, state="started", **columns):
    return {
        "jid": f"job-{n:04}",
        "actor": "work",
        "queue": "default",
        "state": state,
        "attempt": 1,
        "token": f"token-{n}",
        "created_at": NOW,
        "updated_at": NOW,
        "started_at": NOW,
        **columns,
    }


@pytest.fixture
def make_log(database_url):
    """Return a function that makes a log of a job model, on each kind of database."""
    logs = []

    def make(model):
        logs.append(JobLog(database_url, model=type(model.__name__, (model,), {})))
        logs[0].create_tables()
        return logs[0]

    yield make
    for log in logs:
        log.close()


def stored(log, **values):
    """Write *values* to a row with an event, like the middleware, and return the row."""
    fields = log.core.own_fields
    columns = {fields[name].column_name: fields[name].db_value(v) for name, v in values.items()}
    log.core.transitions.write([Started(row(1, **columns))])
    return log.Job.get()


def test_values_of_own_columns(make_log):
    """A value of a custom column is read back unchanged."""
    given = {
        "amount": decimal.Decimal("12345.678"),
        "due": dt.datetime(2026, 11, 24, 10, 30, 0, 125_000),  # noqa: DTZ001
        "good": True,
        "ratio": 0.1,
        "reference": uuid.uuid4(),
    }
    log = make_log(_Rich)
    written = stored(log, **given)

    if isinstance(log.database, peewee.MySQLDatabase):
        # peewee makes such a column one of whole seconds there.
        given["due"] = given["due"].replace(microsecond=0)
    assert given == {name: getattr(written, name) for name in given}


def test_bytes_in_an_own_column(make_log):
    """A column of bytes works too."""
    assert b"\x00\xff" == bytes(stored(make_log(_Raw), picture=b"\x00\xff").picture)


def test_hostile_text(joblog):
    """Quotes, escapes, other alphabets and placeholder-like text are stored unchanged."""
    text = "%s ? $1 '\" \\ \\u0041 \u2028 \N{SNOWMAN} \N{GRINNING FACE} \n\t"
    joblog.core.transitions.write([Started(row(1, error_message=text, args='["\\u0000"]'))])

    job = joblog.Job.get()
    assert (text, ["\x00"]) == (job.error_message, job.args)


@pytest.mark.parametrize("value", [object(), math.nan])
def test_a_value_without_a_word(joblog, value):
    """A value that cannot be written is an error, and nothing of its batch is written."""
    if isinstance(joblog.database, peewee.MySQLDatabase) and not isinstance(value, float):
        pytest.skip("pymysql writes the text of whatever it does not know")
    with pytest.raises((TypeError, ValueError, peewee.PeeweeException)):
        joblog.core.transitions.write([Started(row(1)), Started(row(2, actor=value))])

    assert 0 == joblog.Job.select().count()


@pytest.mark.full
def test_a_large_batch(joblog):
    """A batch of any size is written completely, and its starts are answered."""
    # More than one statement takes: a thousand on PostgreSQL, and a hundred elsewhere.
    is_postgres = isinstance(joblog.database, peewee.PostgresqlDatabase)
    number = 1234 if tiers.whole() or is_postgres else 234
    events = [Started(row(n)) for n in range(number)]
    late = [Started(row(n, token=f"token-{n}")) for n in range(number)]
    answers = joblog.core.transitions.write(events)
    assert [] == [answer for answer in answers.values() if not answer.granted]
    answers = joblog.core.transitions.write(late)

    assert number == joblog.Job.select().count()
    assert all(answer.granted for answer in answers.values())


def test_columns_that_only_some_rows_carry(joblog):
    """In a batch of rows with different columns, each writes its own, and keeps the others."""
    joblog.core.transitions.write([Enqueued(row(1, "enqueued", token=None, user_id="7"))])
    joblog.core.transitions.write([Started(row(1)), Started(row(2, user_id="8"))])
    joblog.core.transitions.write([Started(row(3))])

    users = {job.jid: job.user_id for job in joblog.Job.select()}
    assert {"job-0001": 7, "job-0002": 8, "job-0003": None} == users


def test_what_an_end_does_not_say_is_empty(joblog):
    """An end without an error and an eta clears those of the run before."""
    failed = row(1, "retrying", eta=NOW, error_type="ValueError", error_message="no")
    joblog.core.transitions.write([Ended(failed)])
    again = {"attempt": 2, "token": "token-2"}
    joblog.core.transitions.write([Started(row(1, **again))])
    started = joblog.Job.get()
    joblog.core.transitions.write([Ended(row(1, "finished", finished_at=NOW, **again))])
    finished = joblog.Job.get()

    assert ("ValueError", None) == (started.error_type, started.eta)
    assert (None, None, None) == (finished.error_type, finished.error_message, finished.eta)


def test_one_statement_whatever_the_columns(joblog, asked):
    """Rows with different columns still take one statement; MySQL also needs a query."""
    joblog.database.connect(reuse_if_open=True)
    with asked() as texts:
        joblog.core.transitions.write([Started(row(1)), Started(row(2, user_id="8"))])

    assert (2 if isinstance(joblog.database, peewee.MySQLDatabase) else 1) == len(texts)


@pytest.fixture
def upsert(postgres_database):
    """Return the statement that writes a log's runs to PostgreSQL."""
    log = JobLog(postgres_database)
    yield log.core.transitions._statements.runs
    log.close()


def test_prepared_on_each_connection(upsert):
    """A statement is prepared on each connection, except in a transaction."""
    database = upsert.database
    for n in range(3):
        with database.connection_context():
            assert {f"job-{n:04}"} == upsert.write([row(n)])
            assert set() == upsert.write([row(n)])
            with database.atomic() as transaction:
                assert {"job-0009"} == upsert.write([row(9)])
                transaction.rollback()

    assert 3 == upsert.rule.model.select().count()


def test_prepared_again(upsert):
    """A statement that the driver deallocated, as after a rollback, is prepared again."""
    database = upsert.database
    database.connect(reuse_if_open=True)
    assert {"job-0001"} == upsert.write([row(1)])
    # As the driver does after a rollback, and a pooler between two transactions.
    database.execute_sql("DEALLOCATE ALL")
    made = database.execute_sql("SELECT count(*) FROM pg_prepared_statements").fetchone()

    assert (0,) == made
    assert {"job-0002"} == upsert.write([row(2)])


def test_an_error_of_a_prepared_statement(upsert, postgres_url):
    """A server error becomes peewee's error, with its code."""
    with pytest.raises(peewee.DataError) as error:
        upsert.write([row(1, attempt="many")])
    assert "22P02" == error.value.orig.sqlstate

    pid = upsert.database.execute_sql("SELECT pg_backend_pid()").fetchone()[0]
    with psycopg.connect(postgres_url, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s)", (pid,))
    with pytest.raises(peewee.OperationalError):
        upsert.write([row(1)])


def test_a_connection_that_may_not_prepare(postgres_url):
    """Behind a pooler that keeps no prepared statements, none is made."""
    database = peewee.PostgresqlDatabase(postgres_url, prefer_psycopg3=True, prepare_threshold=None)
    log = JobLog(database)
    log.create_tables()
    upsert = log.core.transitions._statements.runs
    with database.connection_context():
        assert {"job-0001"} == upsert.write([row(1)])
        made = database.execute_sql("SELECT count(*) FROM pg_prepared_statements").fetchone()
    log.close()

    assert (0,) == made
