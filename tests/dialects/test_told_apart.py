"""Texts that differ in any way are distinct, also in keys and jids."""

from __future__ import annotations

from dramatiq_joblog import JobLog

ALIKE = ("ada", "ada ", "Ada", "adá", "ada\u0301", "ada  ")


def test_jids_are_told_apart(joblog, job_factory):
    """Message ids that differ in trailing spaces, case or accents are different jobs."""
    for number, jid in enumerate(ALIKE):
        job_factory(jid=jid, user_id=jid, attempt=number)

    assert list(range(len(ALIKE))) == [joblog.get(jid).attempt for jid in ALIKE]
    assert [1] * len(ALIKE) == [joblog.jobs.for_user(user).count() for user in ALIKE]


def test_keys_are_told_apart(joblog):
    """Keys that differ in trailing spaces, case or accents are held independently."""
    with joblog.lock("ada"):
        for key in ALIKE[1:]:
            with joblog.lock(key):
                pass


def test_tables_of_an_older_version_are_mended(mysql_url):
    """On MySQL, the migration repairs tables whose keys ignored trailing spaces."""
    log = JobLog(mysql_url)
    log.create_tables()
    log.database.execute_sql(
        "ALTER TABLE joblog_job MODIFY jid varchar(255) COLLATE utf8mb4_bin NOT NULL"
    )
    log.create_tables()
    now = 1_764_000_000_000
    facts = {"actor": "a", "queue": "q", "state": "dead", "attempt": 1}
    for jid in ("order-1", "order-1 "):
        log.Job.create(jid=jid, created_at=now, updated_at=now, **facts)

    assert {"order-1", "order-1 "} == {job.jid for job in log.jobs}
    log.close()
