"""The words of a search, and what they find."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from peewee import ForeignKeyField, Model, SqliteDatabase

from dramatiq_joblog import Job, JobLog, JobLogError, SearchError, State
from dramatiq_joblog.reading.search import KEYS, Term, instant, parse

NOON = datetime(2030, 1, 1, 12, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("", []),
        ("  state:dead  ", [Term("state", "dead")]),
        ("-user:7 type:a", [Term("user", "7", negated=True), Term("type", "a")]),
        (
            'error:"a b" "c: d" -"e f"',
            [Term("error", "a b"), Term(None, "c: d"), Term(None, "e f", negated=True)],
        ),
        ("worker:web1:12:3", [Term("worker", "web1:12:3")]),
        ("since:2026-11-24T12:00", [Term("since", "2026-11-24T12:00")]),
        ("ValueError: - it's", [Term(None, "ValueError:"), Term(None, "-"), Term(None, "it's")]),
        ('actor:""', [Term("actor", "")]),
    ],
)
def test_words(text, terms):
    """Words are keys with values, quoted where they have spaces, or bare text."""
    assert terms == parse(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('actor:"a', "has a quote that is not closed"),
        ('a "b', "has a quote that is not closed"),
        ("usr:7", r"usr: .* is not a key; did you mean user:\?"),
        ("http://x", "is not a key; use one of id, state, type"),
        ("http://x", r"saved, dismissed\. Put text with a colon in quotes"),
        ("actor:", "needs a value: the actor's name"),
    ],
)
def test_words_that_cannot_be_read(text, says):
    """Invalid searches are refused, with what to write instead."""
    with pytest.raises(SearchError, match=says) as refusal:
        parse(text)
    assert isinstance(refusal.value, JobLogError | ValueError)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90s", NOON - timedelta(seconds=90)),
        ("30m", NOON - timedelta(minutes=30)),
        ("1.5h", NOON - timedelta(hours=1.5)),
        ("2d", NOON - timedelta(days=2)),
        ("1w", NOON - timedelta(weeks=1)),
        ("now", NOON),
        ("2026-11-24", datetime(2026, 11, 24, tzinfo=timezone.utc)),
        ("2026-11-24T12:00Z", datetime(2026, 11, 24, 12, tzinfo=timezone.utc)),
        ("2026-11-24T12:00+02:00", datetime(2026, 11, 24, 10, tzinfo=timezone.utc)),
    ],
)
def test_instants(text, expected):
    """A time is relative or a date, and always aware and in UTC."""
    found = instant(text, NOON)
    assert expected == found
    assert timedelta(0) == found.utcoffset()


@pytest.mark.parametrize("text", ["last week", "2 fortnights", "99999999999d", "2026-13-01", ""])
def test_what_is_no_instant(text):
    """An invalid time is refused, with what to write instead."""
    with pytest.raises(SearchError, match="is not a time: use 30m, 2h, 1d or 2w"):
        instant(text, NOON)


@pytest.fixture
def found(joblog, job_factory):
    """Return a function that searches some jobs and returns their jids, sorted."""
    job_factory(
        jid="a",
        actor="send_mail",
        job_type="mail",
        user_id=7,
        queue="slow",
        worker="web1:12:3",
        created_at=NOON,
    )
    job_factory(
        jid="b",
        actor="send_100%",
        user_id="ada",
        state="dead",
        error_type="ValueError",
        error_message="no address: Timeout",
        worker="web10:1:1",
        created_at=NOON - timedelta(hours=2),
    )
    job_factory(
        jid="c",
        actor="import_rows",
        job_type="import",
        state="started",
        section="s:1",
        created_at=NOON - timedelta(days=3),
    )
    job_factory(
        jid="d",
        actor="import_rows",
        job_type="import",
        state="dead",
        dismissed_at=NOON,
        created_at=NOON - timedelta(days=3),
    )

    def find(text):
        return "".join(sorted(job.jid for job in joblog.search(text, now=NOON)))

    return find


SEARCHES = [
    ("", "abcd"),
    ("id:a", "a"),
    ("actor:send_mail", "a"),
    ("actor:send*", "ab"),
    ("actor:*100%", "b"),
    ("actor:*_1*", "b"),
    ("type:mail", "a"),
    ("type:mail type:import", "acd"),
    ("-type:mail", "bcd"),
    ("-type:mail -type:import", "b"),
    ("user:7", "a"),
    ("user:ada", "b"),
    ("-user:7", "bcd"),
    ("queue:slow", "a"),
    ("worker:web1", "a"),
    ("worker:web1:12", "a"),
    ("worker:web1:12:3", "a"),
    ("worker:web1:1", ""),
    ("error:ValueError", "b"),
    ("-error:ValueError", "acd"),
    ("section:s:1", "c"),
    ("state:dead", "b"),
    ("state:dead state:started", "bc"),
    ("state:dead dismissed:yes", "d"),
    ("state:dead dismissed:yes dismissed:no", "bd"),
    ("-state:dead", "ac"),
    ("state:in_progress", "c"),
    ("since:2h", "ab"),
    ("until:2h", "cd"),
    ("since:1d until:1h", "b"),
    ("timeout", "b"),
    ("address timeout", "b"),
    ("mail", "a"),
    ('"no address"', "b"),
    ("IMPORT -state:started", "d"),
    ("-import", "ab"),
    ("100%", "b"),
    ("valueerror", "b"),
    ("a", "a"),
    ("nothing_of_it", ""),
]


def test_search(found):
    """Each search finds exactly the expected jobs."""
    assert dict(SEARCHES) == {text: found(text) for text, _ in SEARCHES}


@pytest.mark.one_database
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("state:gone", "state:gone is not a state: use active, in_progress, enqueued"),
        ("dismissed:perhaps", "use yes or no"),
        ("-since:1h", "use until:"),
        ("since:soon", "'soon' is not a time"),
    ],
)
def test_values_that_make_no_sense(joblog, text, says):
    """An invalid value of a key is refused with one sentence."""
    with pytest.raises(SearchError, match=says):
        joblog.search(text)


def test_a_user_of_the_users_own(tmp_path):
    """With a foreign key, a user is found by id, and an impossible id is refused."""
    database = SqliteDatabase(tmp_path / "jobs.db")

    class Customer(Model):
        class Meta:
            database = None

    class ShopJob(Job):
        user = ForeignKeyField(Customer, backref="jobs", null=True)

    Customer.bind(database)
    log = JobLog(database, model=ShopJob)
    log.create_tables()
    database.create_tables([Customer])
    assert [] == list(log.search("user:7 -user:8"))
    with pytest.raises(SearchError, match="user:ada cannot be the id of a user"):
        log.search("user:ada")
    log.close()
    database.close()


def test_every_key_is_understood(joblog):
    """Every documented key can be searched by, and completed without an error."""
    times = dict.fromkeys(("ended", "overdue", "since", "until"), "1h")
    amounts = {"attempt": "3", "duration": ">1s", "queue_time": ">1s"}
    values = {"state": "dead", "dismissed": "no", **times, **amounts}
    joblog.save_search("x", "state:dead", who="ada")
    for key in KEYS:
        assert [] == list(joblog.search(f"{key}:{values.get(key, 'x')}"))
        assert isinstance(joblog.complete(key, "x"), list)


def test_completion(joblog, job_factory):
    """A value is completed from the newest jobs, most frequent first."""
    for name, times in {"import_a": 1, "import_b": 2, "mail": 3}.items():
        for _ in range(times):
            job_factory(actor=name, user_id=7, state="dead")

    assert [("import_b", None), ("import_a", None)] == joblog.complete("actor", "IMP")
    assert [("mail", None)] == joblog.complete("actor", limit=1)
    assert [("7", None)] == joblog.complete("user", "7")
    assert [("dead", 6), ("delayed", 0)] == sorted(joblog.complete("state", "de"))
    assert [("in_progress", None)] == joblog.complete("state", "in_")
    assert [] == joblog.complete("colour", "")


def test_names_of_arguments_are_completed(joblog, job_factory):
    """Names of arguments are completed from the newest jobs, including nested ones."""
    order = {"city": "Rome", "a b": 1, "x:y": 2, "": 3, "count": 2}
    for kwargs in ({"feed_id": 7, "full": True}, {"feed_id": 8, "order": order}, None):
        job_factory(args=[1, 2], kwargs=kwargs)
    job_factory(args={"odd": 1}, kwargs=["odd"])

    def names(prefix, **options):
        return [name for name, _ in joblog.complete("args.", prefix, **options)]

    assert ["feed_id", "full"] == names("F")
    assert ["feed_id"] == names("", limit=1)
    assert ["order.city", "order.count"] == names("order.c")
    assert [] == names("order.city.x")
    assert ["feed_id", "full", "order"] == names("")
    for name in names("order."):
        assert 0 == joblog.search(f"args.{name}:none").count()


def test_values_of_states_are_completed(joblog):
    """All states are values of ``state:``."""
    assert list(map(str, State)) == [value for value, _ in joblog.complete("state", limit=9)]
