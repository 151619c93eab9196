"""Precompiled statements return the same as those compiled each time."""

from __future__ import annotations

from dramatiq_joblog.database.compiled import Compiled


def test_any_number_of_values(joblog, job_factory):
    """A statement is compiled once for each number of values, and executed with current values."""
    for jid in "abcd":
        job_factory(jid=jid)
    made = []

    def make(jids):
        made.append(list(jids))
        job = joblog.Job
        return job.select(job.jid).where(job.jid.in_(jids)).order_by(job.jid)

    statement = Compiled(joblog.database, make)
    asked = [["a", "b"], ["c", "d"], ["d"], ["x", "a"], ["a"]]
    found = [[jid for (jid,) in statement.execute(jids).fetchall()] for jids in asked]

    assert [["a", "b"], ["c", "d"], ["d"], ["a"], ["a"]] == found
    assert [["a", "b"], ["d"]] == made
