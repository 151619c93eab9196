"""Two logs, and an application's own tables of any name, live in one database."""

from __future__ import annotations

import pytest
from peewee import CharField, IntegrityError, Model, MySQLDatabase, SqliteDatabase

from dramatiq_joblog import Job, JobLog
from dramatiq_joblog.recording.events import Enqueued


def write(log, jid):
    """Insert a job and a mark; return the stored job."""
    row = {"jid": jid, "actor": "work", "queue": "default", "attempt": 1, "state": "enqueued"}
    log.core.writer.write(Enqueued(row | {"enqueued_at": 0, "created_at": 0, "updated_at": 0}))
    log.core.writer.call(lambda: log.core.totals.marks.note_late({60_000}))
    return log.get(jid)


def own_models(database):
    """Return models of an application with the same names as the log's."""

    class Mark(Model):
        name = CharField(unique=True)

    class Worker(Model):
        process = CharField(unique=True)

    class Job(Model):
        jid = CharField(unique=True)
        state = CharField(index=True)

    class Lock(Model):
        kind = CharField()
        key = CharField()
        slot = CharField()

        class Meta:
            indexes = ((("kind", "key", "slot"), True),)

    models = (Mark, Worker, Job, Lock)
    database.bind(models)
    return models


def twice(model, **values):
    """Insert a row twice."""
    model.insert(values).execute()
    model.insert(values).execute()


@pytest.fixture
def shop_log(joblog):
    """Return a function that makes another log in the same database, with a model of its own."""

    def make():
        class ShopJob(Job):
            order = CharField(null=True, index=True)

        log = JobLog(joblog.database, model=ShopJob)
        log.create_tables()
        return log

    made = []
    yield lambda: made.append(make()) or made[-1]
    for log in made:
        log.core.writer.close()


def test_the_plain_log_first_and_another_later(joblog, shop_log):
    """A second log, with a custom model, writes its rows beside the first."""
    assert write(joblog, "a").state == "enqueued"

    other = shop_log()

    assert write(other, "a").state == "enqueued"
    assert write(other, "b").state == "enqueued"
    assert [log.jobs.count() for log in (joblog, other)] == [1, 2]
    assert [f.text for f in other.doctor() if f.name == "schema" and not f.ok] == []


@pytest.mark.parametrize("first", ["application", "log"])
def test_an_application_with_tables_of_the_same_classes(database_url, first):
    """Models named Mark, Worker, Job and Lock have their unique indexes, and so has the log."""
    log = JobLog(database_url)
    models = own_models(log.database)
    if first == "log":
        log.create_tables()
    with log.database.connection_context():
        log.database.create_tables(models)
    if first == "application":
        log.create_tables()

    assert write(log, "a").state == "enqueued"
    mark, worker, job, lock = models
    with log.database.connection_context():
        for model, values in (
            (mark, {"name": "a"}),
            (worker, {"process": "a"}),
            (job, {"jid": "a", "state": "b"}),
            (lock, {"kind": "a", "key": "b", "slot": "c"}),
        ):
            with pytest.raises(IntegrityError):
                twice(model, **values)
    with pytest.raises(IntegrityError):
        twice(log.core.tables.mark, name="twice", value=1)
    log.close()


def test_an_application_whose_indexes_have_our_names(database_url):
    """If an index name is used by another table, the log uses another name."""
    log = JobLog(database_url)

    class Taken(Model):
        one = CharField()
        two = CharField()

    log.database.bind([Taken])
    Taken.add_index(Taken.index(Taken.one, name="joblog_mark_name"))
    Taken.add_index(Taken.index(Taken.two, name="joblog_job_waiting"))
    with log.database.connection_context():
        log.database.create_tables([Taken])

    log.create_tables()
    before = _indexes(log)
    log.create_tables()

    assert _indexes(log) == before
    assert write(log, "a").state == "enqueued"
    with pytest.raises(IntegrityError):
        twice(log.core.tables.mark, name="twice", value=1)
    log.close()


def test_a_log_from_before(joblog):
    """Indexes that were named after classes are renamed, and the names are free again."""
    if isinstance(joblog.database, MySQLDatabase):
        pytest.skip("names are a table's own there")
    _make_old(joblog)
    assert {"mark_name", "job_jid"} <= _indexes(joblog)

    joblog.create_tables()

    assert not {"mark_name", "job_jid", "worker_process"} & _indexes(joblog)
    assert {"joblog_mark_name", "joblog_job_jid"} <= _indexes(joblog)
    models = own_models(joblog.database)
    with joblog.database.connection_context():
        joblog.database.create_tables(models)
        with pytest.raises(IntegrityError):
            twice(models[0], name="a")
    assert write(joblog, "a").state == "enqueued"


def test_a_log_from_before_whose_keys_were_passed_over(joblog):
    """A log without its unique indexes is a finding, and is repaired even with duplicate rows."""
    with joblog.database.connection_context():
        _drop(joblog, joblog.core.tables.mark, "name")
        _drop(joblog, joblog.Job, "jid")
        joblog.database.execute_sql(
            "DELETE FROM joblog_job_migration WHERE name = '0003_index_names'"
        )
    twice(joblog.core.tables.mark, name="late:60000", value=1)

    (found,) = [finding for finding in joblog.doctor() if finding.name == "schema"]
    assert not found.ok
    joblog.create_tables()

    assert write(joblog, "a").state == "enqueued"
    assert (
        joblog.core.tables.mark.select().where(joblog.core.tables.mark.name == "late:60000").count()
        == 1
    )


def test_a_key_that_is_missing_is_a_finding(joblog):
    """A schema of this version without a unique index is a finding that names it."""
    with joblog.database.connection_context():
        _drop(joblog, joblog.Job, "jid")

    (found,) = [finding for finding in joblog.doctor() if finding.name == "schema"]

    assert "The unique index on (jid) of joblog_job is missing" in found.text
    assert "create_tables()" in found.cure
    joblog.create_tables()
    assert all(finding.ok for finding in joblog.doctor() if finding.name == "schema")


def test_the_table_of_a_model_without_a_name(sqlite_url):
    """A custom model that names no table has it named as peewee names any."""

    class ShopJob(Job):
        class Meta:
            database = None

    class Named(Job):
        class Meta:
            table_name = "mine"

    assert ShopJob._meta.table_name == "shopjob"
    assert Named._meta.table_name == "mine"
    database = SqliteDatabase(sqlite_url.removeprefix("sqlite:///"))

    class Bound(Job):
        class Meta:
            database = None

    Bound.bind(database)
    assert JobLog(database, model=Bound).Job._meta.database is database


def test_long_names_of_tables(database_url):
    """With a long table name, indexes are not created again each time."""

    class LongJob(Job):
        class Meta:
            table_name = "a_rather_long_prefix_of_a_department_job"

    log = JobLog(database_url, model=LongJob)
    log.create_tables()
    before = _indexes(log)
    log.create_tables()

    assert _indexes(log) == before
    log.close()


def _indexes(log):
    with log.database.connection_context():
        return {
            index.name
            for model in log.models
            for index in log.database.get_indexes(model._meta.table_name)
        }


def _drop(log, model, column):
    """Drop the unique index of a column, whatever its name."""
    table = model._meta.table_name
    on = f" ON {table}" if isinstance(log.database, MySQLDatabase) else ""
    for index in log.database.get_indexes(table):
        if index.unique and index.columns == [column]:
            log.database.execute_sql(f"DROP INDEX {index.name}{on}")


def _make_old(log):
    """Create the tables of the first version."""
    with log.database.connection_context():
        for model, columns in (
            (log.Job, "jid"),
            (log.core.tables.mark, "name"),
            (log.Worker, "process"),
        ):
            table = model._meta.table_name
            log.database.execute_sql(f"DROP INDEX {table}_{columns}")
            former = f"{model.__name__.lower()}_{columns}"
            log.database.execute_sql(f"CREATE UNIQUE INDEX {former} ON {table} ({columns})")
        log.database.execute_sql("DELETE FROM joblog_job_migration WHERE name = '0003_index_names'")
