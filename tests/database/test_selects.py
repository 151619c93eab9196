"""The SQL of selects that the package writes itself instead of peewee."""

from __future__ import annotations

import contextlib

import pytest
from peewee import ModelSelect

from dramatiq_joblog import JobLog


def by_peewee(model):
    """Return peewee's own select of whole rows."""
    return ModelSelect(model, model._meta.sorted_fields, is_default=True)


#: Queries made from a select of whole rows.
QUERIES = {
    "alone": lambda job, rows: rows,
    "one": lambda job, rows: rows.where(job.jid == "a").limit(1),
    "as a value": lambda job, rows: job.select(job.jid).where(job.id.in_(rows)),
    "as a source": lambda job, rows: job.select(job.jid).from_(rows.alias("rows")),
    "twice": lambda job, rows: rows.where(job.jid == "a") | rows.where(job.jid == "b"),
    "joined": lambda job, rows: rows.join(other := job.alias(), on=other.parent_jid == job.jid),
    "other columns": lambda job, rows: rows.columns(job.jid, job.actor),
    "as many other columns": lambda job, rows: rows.columns(*reversed(job._meta.sorted_fields)),
    "columns more": lambda job, rows: rows.select_extend(job.jid),
}


@pytest.fixture(params=["sqlite:///jobs.db", "postgresql://db/jobs", "mysql://db/jobs"])
def log(request):
    """Return a log of each kind of database, which is not opened."""
    with contextlib.closing(JobLog(request.param)) as log:
        yield log


@pytest.mark.parametrize("name", QUERIES)
def test_the_same_as_peewee(log, name):
    """A select of whole rows is the same statement as peewee would write, wherever it is used."""
    make = QUERIES[name]
    assert make(log.Job, by_peewee(log.Job)).sql() == make(log.Job, log.Job.select()).sql()


def test_each_table(log):
    """It is so for each table."""
    for model in log.core.tables:
        assert by_peewee(model).sql() == model.select().sql()
