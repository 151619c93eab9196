"""The schema: concurrent and repeated creation, older and newer versions, and the models."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor

import pytest
import tiers
from peewee import CharField, SqliteDatabase

from dramatiq_joblog import Job, JobLog


def tables(joblog):
    """Return the schema of our tables: columns with their nullability, and indexes."""
    found = {}
    for model in (joblog.Job, joblog.Failure):
        name = model._meta.table_name
        columns = {(c.name, c.null) for c in joblog.database.get_columns(name)}
        indexes = {(tuple(i.columns), i.unique) for i in joblog.database.get_indexes(name)}
        found[name] = (columns, indexes)
    return found


@pytest.mark.full
@pytest.mark.process
@pytest.mark.new_database
@pytest.mark.one_database
def test_processes_boot_at_once(database_url, run_script):
    """Processes that boot together on an empty database all succeed."""
    number = 5 if tiers.whole() else 2
    with ThreadPoolExecutor(number) as threads:
        boots = [
            *threads.map(lambda n: run_script("boot.py", database_url, f"j{n}"), range(number))
        ]
    assert [0] * number == [boot.returncode for boot in boots], boots
    joblog = JobLog(database_url)
    assert number == joblog.jobs.count()
    joblog.close()


def test_repeated(joblog, job_factory):
    """Creating the tables again changes nothing."""
    before = tables(joblog)
    job_factory(jid="j")
    joblog.create_tables()

    assert before == tables(joblog)
    assert "finished" == joblog.get("j").state


def test_as_the_models_say(joblog):
    """The migrations create what the models declare."""
    for model in (joblog.Job, joblog.Failure):
        declared = {(f.column_name, f.null) for f in model._meta.sorted_fields}
        columns = joblog.database.get_columns(model._meta.table_name)
        assert declared == {(c.name, c.null) for c in columns}
    [jid] = [i for i in joblog.database.get_indexes("joblog_job") if i.columns == ["jid"]]
    assert jid.unique


def test_a_schema_from_the_future(joblog, job_factory, caplog):
    """A schema newer than the code is used unchanged, with a warning."""
    job_factory(jid="j")
    joblog.database.execute_sql("ALTER TABLE joblog_job ADD COLUMN colour VARCHAR(9)")
    joblog.database.execute_sql(
        "INSERT INTO joblog_job_migration (name, applied) "
        "VALUES ('9999_colour', '2040-01-01 00:00:00')"
    )
    with caplog.at_level(logging.WARNING):
        joblog.create_tables()

    assert "9999_colour" in caplog.text
    assert "Upgrade dramatiq_joblog on this machine" in caplog.text
    job_factory(jid="k")
    assert ["k", "j"] == [job.jid for job in joblog.jobs]


def test_a_column_that_is_added_later(tmp_path):
    """A new column of a custom model is added to the existing table."""
    url = f"sqlite:///{tmp_path / 'jobs.db'}"

    class ShopJob(Job):
        class Meta:
            table_name = "shop_job"

    first = JobLog(url, model=ShopJob)
    first.create_tables()
    first.close()

    class GrownJob(Job):
        tenant = CharField(null=True, index=True)

        class Meta:
            table_name = "shop_job"

    grown = JobLog(url, model=GrownJob)
    grown.create_tables()
    columns, indexes = tables(grown)["shop_job"]
    assert ("tenant", True) in columns
    assert (("tenant",), False) in indexes
    grown.close()


def test_a_file_is_in_wal_mode(tmp_path):
    """A SQLite file lets its readers read while it is written."""
    joblog = JobLog(f"sqlite:///{tmp_path / 'jobs.db'}")
    joblog.create_tables()
    joblog.close()
    database = SqliteDatabase(tmp_path / "jobs.db")
    assert "wal" == database.journal_mode
    database.close()
