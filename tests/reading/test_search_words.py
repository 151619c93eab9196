"""Search words for durations, attempts, arguments and times."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import dramatiq
import pytest

from dramatiq_joblog.errors import SearchError
from dramatiq_joblog.reading import search

NOW = datetime(2026, 11, 27, 14, 22, tzinfo=timezone.utc)


def found(joblog, words, **options):
    """Return the actors of the jobs that a search finds, in alphabetical order."""
    return sorted(job.actor for job in joblog.search(words, **options).page().jobs)


@pytest.fixture
def lasting(joblog, job_factory):
    """Return a log with jobs of different lengths, attempts and waits."""
    for name, ms, attempt in (("fast", 5, 1), ("middle", 10_000, 2), ("slow", 60_000, 4)):
        job_factory(actor=name, duration=ms, queue_time=ms // 5, attempt=attempt)
    job_factory(actor="new", state="enqueued", duration=None, queue_time=None, finished_at=None)
    return joblog


@pytest.mark.parametrize(
    ("words", "actors"),
    [
        ("duration:>10s", ["slow"]),
        ("duration:>=10s", ["middle", "slow"]),
        ("duration:<6", ["fast"]),
        ("duration:5ms..10s", ["fast", "middle"]),
        ("duration:0.5m..", ["slow"]),
        ("-duration:>10s", ["fast", "middle", "new"]),
        ("queue_time:>1.5s", ["middle", "slow"]),
        ("attempt:2", ["middle"]),
        ("attempt:>1", ["middle", "slow"]),
        ("attempt:..2", ["fast", "middle", "new"]),
        ("attempt:1 attempt:4", ["fast", "new", "slow"]),
    ],
)
def test_amounts(lasting, words, actors):
    """Durations, queue times and attempts are compared, and ranges have both of their ends."""
    assert found(lasting, words) == actors


@pytest.mark.parametrize(
    "words",
    [
        "duration:10s",
        "duration:>soon",
        "duration:..",
        "duration:5s..1s",
        "duration:>",
        "duration:>99999999999999w",
        "queue_time:>-1s",
        "attempt:many",
        "attempt:>²",
        "attempt:4..2",
        "ended:..",
        "ended:x..y",
        "ended:2026-11-24..2026-11-23",
        "since:14:99",
        "since:tomorrow",
        "argh:x",
    ],
)
def test_odd_values(joblog, words):
    """An invalid value raises one sentence."""
    with pytest.raises(SearchError) as refused:
        list(joblog.search(words, now=NOW).page().jobs)
    assert "\n" not in str(refused.value)


def test_ended_within(joblog, job_factory):
    """Jobs that ended in a period are found, from its beginning to before its end."""
    for name, minutes in (("early", 6), ("inside", 3), ("late", 1)):
        at = int((NOW - timedelta(minutes=minutes)).timestamp() * 1000)
        job_factory(actor=name, created_at=at - 3_600_000, finished_at=at)
    assert found(joblog, "ended:14:17..14:20", now=NOW) == ["inside"]
    assert found(joblog, "ended:14:16..14:19", now=NOW) == ["early"]
    assert found(joblog, "ended:14:19..", now=NOW) == ["inside", "late"]
    assert found(joblog, "ended:..14:19", now=NOW) == ["early"]
    assert found(joblog, "-ended:14:17..14:20", now=NOW) == ["early", "late"]


def test_words_for_days():
    """Days and times of day are in the reader's zone."""
    here = NOW.astimezone(ZoneInfo("Europe/Berlin"))
    assert search.instant("today", NOW) == datetime(2026, 11, 27, tzinfo=timezone.utc)
    assert search.instant("yesterday", here) == datetime(2026, 11, 25, 23, tzinfo=timezone.utc)
    assert search.instant("15:05", here) == datetime(2026, 11, 27, 14, 5, tzinfo=timezone.utc)
    assert search.instant("23:30", NOW) == datetime(2026, 11, 26, 23, 30, tzinfo=timezone.utc)
    assert search.instant("2026-11-27T12:00", here).hour == 11


@pytest.mark.every_database
def test_arguments(joblog, job_factory):
    """An argument is found by name and by position, and nested values by path."""
    order = {"city": "Köln", "items": [{"sku": "a-1"}], "paid": True, "total": 7}
    job_factory(actor="named", args=[], kwargs={"order": order})
    job_factory(actor="placed", args=[7, {"city": "Köln"}], kwargs={})
    job_factory(actor="other", args=["7x"], kwargs={"city": "Köln"})
    job_factory(actor="none", args=None, kwargs=None)
    assert found(joblog, "args.order.city:Köln") == ["named"]
    assert found(joblog, "args.order.total:7") == ["named"]
    assert found(joblog, "args.order.paid:true") == ["named"]
    assert found(joblog, "args.order.items.0.sku:a-*") == ["named"]
    assert found(joblog, "args.0:7") == ["placed"]
    assert found(joblog, "args.1.city:Köln") == ["placed"]
    assert found(joblog, "args:Köln") == ["named", "other", "placed"]
    assert found(joblog, "-args:Köln") == ["none"]
    assert found(joblog, "args.order.city:Bonn") == []
    assert found(joblog, 'args.order.city:"K* OR 1=1"') == []


@pytest.mark.few(3)
@pytest.mark.every_database
@pytest.mark.parametrize("name", ["größe", "日本", "😀", "a'b", "a%b", "$"])
def test_arguments_with_names_of_any_language(joblog, job_factory, name):
    """An argument is found by its name in any script, also when nested."""
    job_factory(actor="named", args=[], kwargs={name: {name: "x"}, f"{name}2": "y"})
    job_factory(actor="other", args=[], kwargs={"n": "x"})
    assert found(joblog, f"args.{name}.{name}:x") == ["named"]
    assert found(joblog, f"args.{name}2:Y*") == ["named"]
    assert found(joblog, f"args.{name}.{name}:y") == []


@pytest.mark.every_database
@pytest.mark.parametrize("odd", ["\x00", "\ud800"])
def test_characters_that_no_database_holds(joblog, job_factory, odd):
    """Neither the searched value nor stored arguments make a search fail."""
    job_factory(actor="odd", args=[f"a{odd}b"], kwargs={f"n{odd}": f"x{odd}"}, job_type=f"t{odd}")
    job_factory(actor="plain", args=["ab"], kwargs={"n": "x"}, job_type="t")
    assert found(joblog, f"type:t{odd}") == ["odd"]
    assert found(joblog, "args.n:x") == ["plain"]
    assert found(joblog, "args.0:ab") == ["plain"]
    for words in (f"args.{odd}:{odd}", f"args.n:{odd}", f"args.n:*{odd}*", f"user:{odd}"):
        assert found(joblog, words) == []


@pytest.mark.every_database
def test_arguments_that_are_no_json(joblog, job_factory):
    """A foreign row with invalid JSON does not hide the others."""
    job_factory(actor="good", kwargs={"city": "Bonn"})
    bad = job_factory(actor="bad")
    table = joblog.Job._meta.table_name
    joblog.database.execute_sql(f"UPDATE {table} SET kwargs = '{{city' WHERE id = {bad.id}")
    assert found(joblog, "args.city:Bonn") == ["good"]


def test_arguments_by_the_names_of_parameters(joblog, make_broker, job_factory):
    """A positional argument has the name that its actor gives it, and no other actor's."""
    broker = make_broker(joblog=joblog)

    @dramatiq.actor
    def greet(greeting, user): ...

    job_factory(actor="greet", args=["hello", {"id": 7}], kwargs={})
    job_factory(actor="other", args=["hello", {"id": 7}], kwargs={})
    assert found(joblog, "args.user.id:7", broker=broker) == ["greet"]
    assert found(joblog, "args.greeting:hello") == ["greet"]


@pytest.mark.every_database
def test_reasons_and_lines(joblog, job_factory):
    """Reasons of dead and skipped jobs, and log lines, are found by parts of their text."""
    job_factory(actor="dead", state="dead", dead_reason="retries_exhausted")
    job_factory(actor="skipped", state="skipped", skip_reason="not needed")
    said = job_factory(actor="said")
    joblog.Line.create(
        jid=said.jid, token="t", attempt=1, number=1, time=0, level="INFO", logger="x",
        text="2 orders without a currency, 50% done",
    )  # fmt: skip
    assert found(joblog, "reason:retries_exhausted") == ["dead"]
    assert found(joblog, 'reason:"not *"') == ["skipped"]
    assert found(joblog, 'lines:"a currency, 50%"') == ["said"]
    assert found(joblog, "-lines:orders") == ["dead", "skipped"]


def test_words_come_back_as_they_were_typed():
    """A word for a nested argument is parsed with its path as the key."""
    (term,) = search.parse('-args.order.city:"New York"')
    assert term == search.Term("args.order.city", "New York", negated=True)
