"""Queries with odd values: they match what was stored, or are refused with the cure."""

from __future__ import annotations

import uuid
from datetime import date, datetime, timedelta, timezone

import pytest
from peewee import CharField, ForeignKeyField, Model

from dramatiq_joblog import Job, JobLog, SearchError

ODD_TEXTS = ("a\x00b", "\ud800", "x" * 300, "é", "a'b\"c%d", " ", "ada ", "\U0001f600" * 200)


class DjangoLike:
    """Like a Django row: has a primary key, and a different str()."""

    def __init__(self, pk):
        self.pk = self.id = pk

    def __str__(self):
        return "ada"


def test_a_user_comes_back_as_it_was_sent(joblog, job_factory):
    """The ids 7 and "7" are returned unchanged, and each is found by both."""
    job_factory(jid="number", user_id=7)
    job_factory(jid="text", user_id="7")

    told = {job.jid: (job.user_id, job.as_dict()["user_id"]) for job in joblog.jobs}

    assert {"number": (7, 7), "text": ("7", "7")} == told
    for found in (joblog.jobs.for_user(7), joblog.jobs.for_user("7"), joblog.search("user:7")):
        assert 2 == found.count()
    assert 2 == joblog.jobs.where(joblog.Job.user_id == "7").count()


def test_a_user_of_an_older_version_is_read(joblog, job_factory):
    """An integer written by an older version is returned as a number, and any text as text."""
    for text in ("7", "--7", "-7", "007", "٣", "7" * 60):
        job = job_factory(user_id="x")
        joblog.Job.update(user_id=text, user_is_text=None).where(joblog.Job.id == job.id).execute()

    assert [7, "--7", -7, "007", "٣", "7" * 60] == [
        job.user_id for job in joblog.jobs.order_by(joblog.Job.id)
    ]


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_what_is_stored_is_found(joblog, job_factory, text):
    """A text that was changed for storage is found by its original."""
    job_factory(jid=f"j{text}", user_id=text, job_type=text, actor=text, queue=text, section=text)
    jobs = joblog.jobs

    assert joblog.get(f"j{text}").state == "finished"
    for found in (
        jobs.for_user(text),
        jobs.of_type(text),
        jobs.of_actor(text),
        jobs.in_queue(text),
        jobs.where(joblog.Job.section == text),
        jobs.where(joblog.Job.jid.in_([f"j{text}"])),
    ):
        assert 1 == found.count()
    assert 0 == jobs.excluding(f"j{text}").count()


def test_long_users_are_told_apart(joblog, job_factory):
    """Two ids that differ only after 255 characters are different users."""
    job_factory(user_id="u" * 300 + "a")

    assert 1 == joblog.jobs.for_user("u" * 300 + "a").count()
    assert 0 == joblog.jobs.for_user("u" * 300 + "b").count()


def test_the_row_of_a_user(joblog, job_factory):
    """A user's row can be used in place of its primary key."""
    job_factory(user_id=7)
    key = uuid.uuid4()
    job_factory(user_id=key)

    assert 1 == joblog.jobs.for_user(DjangoLike(7)).count()
    assert 1 == joblog.jobs.for_user(DjangoLike(key)).count()


class Plain:
    """A row without a known primary key."""

    id = 7


@pytest.mark.one_database
@pytest.mark.parametrize("user", [DjangoLike(None), Plain(), object()])
def test_what_is_no_user_is_refused(joblog, user):
    """An object without a known primary key is refused with the cure."""
    with pytest.raises(SearchError, match="primary key"):
        joblog.jobs.for_user(user)


def test_a_foreign_key_is_asked_by_any_row(sqlite_url):
    """In a model with a foreign key, a row of another kind is used by its key, or refused."""

    class Person(Model):
        name = CharField()

    class PersonsJob(Job):
        user = ForeignKeyField(Person, null=True)

    joblog = JobLog(sqlite_url, model=PersonsJob)
    with joblog.database.bind_ctx([Person]):
        joblog.database.create_tables([Person])
        joblog.create_tables()
        ada = Person.create(name="ada")
        now = 1_764_000_000_000
        facts = {"queue": "q", "attempt": 1, "created_at": now, "updated_at": now}
        joblog.Job.create(jid="j", actor="a", state="dead", user=ada, **facts)
        for user in (ada, ada.id, str(ada.id), DjangoLike(ada.id)):
            assert 1 == joblog.jobs.for_user(user).count()
        for user in ("ada", 10**30, Plain()):
            with pytest.raises(SearchError):
                joblog.jobs.for_user(user)
        with pytest.raises(SearchError, match="works for string ids only"):
            joblog.search("user:1*").count()
    joblog.close()


def test_users_are_searched_by_a_part(joblog, job_factory):
    """A star matches any text in a user's id too."""
    job_factory(jid="ada", user_id="ada")
    job_factory(jid="bob", user_id="bob")

    assert ["ada"] == [job.jid for job in joblog.search("user:ad*")]


def test_a_day_is_an_instant(joblog, job_factory):
    """A date means the beginning of its day in UTC."""
    day = date(2026, 11, 24)
    noon = datetime(2026, 11, 24, 12, tzinfo=timezone.utc)
    job_factory(created_at=noon)

    assert 1 == joblog.jobs.since(day).until(day + timedelta(days=1)).count()
    assert 0 == joblog.jobs.until(day).count()


@pytest.mark.one_database
@pytest.mark.parametrize("instant", ["2026-11-24", None, True, float("nan"), [], b"x"])
def test_what_is_no_instant_is_refused(joblog, instant):
    """Anything other than an instant is refused with the cure."""
    with pytest.raises(TypeError, match="aware datetime"):
        joblog.jobs.since(instant)


@pytest.mark.one_database
@pytest.mark.parametrize("limit", [-1, 0, True, None, "5", 2.0, 10**30, float("nan")])
def test_a_limit_is_a_number_of_jobs(joblog, limit):
    """A limit that is not a number of jobs is refused wherever one is given."""
    for ask in (
        lambda: joblog.jobs.page(limit=limit),
        lambda: joblog.oldest(limit),
        lambda: joblog.counts(cap=limit),
        lambda: joblog.complete("actor", limit=limit),
        lambda: joblog.dead_groups([limit]),
        lambda: joblog.prune(batch=limit),
    ):
        with pytest.raises(SearchError, match="must be a whole number"):
            ask()


@pytest.mark.one_database
@pytest.mark.parametrize(
    "cursor",
    ["1" * 20 + "-1", "1-" + "2" * 20, "9223372036854775808-1", "1_0-2", "\uff11-2", 7, b"1-2"],
)
def test_a_cursor_is_one_of_a_page(joblog, cursor):
    """An invalid cursor is refused."""
    with pytest.raises(SearchError, match="not a place in a list"):
        joblog.jobs.page(before=cursor)


@pytest.mark.parametrize("millis", [-5, -(10**17), 10**17, 0])
def test_pages_pass_jobs_of_any_time(joblog, job_factory, millis):
    """A job created at an odd time is on a page like any other."""
    number = job_factory(jid="odd").id
    joblog.Job.update(created_at=joblog.Job.created_at).execute()
    joblog.database.execute_sql(
        f"UPDATE joblog_job SET created_at = {millis}, eta = {millis} WHERE id = {number}"
    )
    job_factory(jid="even")
    page, seen = joblog.jobs.page(limit=1), []
    for _ in range(3):
        seen += [job.jid for job in page.jobs]
        if page.older is None:
            break
        page = joblog.jobs.page(limit=1, before=page.older)

    assert {"even", "odd"} == set(seen)


@pytest.mark.parametrize(
    "text",
    [
        "a\x00b",
        "\ud800",
        "user:a\x00b",
        "type:\ud800*",
        "id:x\x00",
        "worker:\ud800",
        "section:\x00*",
        "*" * 5_000,
        "since:9999-12-31T23:59-23:00 x",
    ],
)
def test_an_odd_search_finds_nothing_or_is_refused(joblog, job_factory, text):
    """An odd search finds nothing, or raises SearchError; a driver's error never appears."""
    job_factory()
    try:
        found = joblog.search(text).page().jobs
    except SearchError:
        return
    assert len(found) <= 1


@pytest.mark.one_database
@pytest.mark.parametrize("text", ["word " * 3_000, "x" * 20_000, "type:a " * 101])
def test_a_search_is_bounded(joblog, text):
    """A search of too many words or characters is refused."""
    with pytest.raises(SearchError, match="use fewer"):
        joblog.search(text)
