"""A family as a waterfall, and changes between two periods."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from html import unescape

import pytest
from pages import opened
from starlette.testclient import TestClient

from dramatiq_joblog.statistics.changes import ABOVE, surprise


@pytest.fixture
def page(joblog):
    """Return a client of a dashboard."""
    with TestClient(opened(joblog), base_url="http://localhost") as asking:
        yield asking


@pytest.fixture
def family(joblog, job_factory):
    """Return a log with a family of three generations, with one dead leaf."""
    now = datetime.now(timezone.utc)

    def at(second, length, **more):
        begin = now - timedelta(minutes=5) + timedelta(seconds=second)
        end = begin + timedelta(seconds=length)
        times = {"created_at": begin, "enqueued_at": begin, "started_at": begin}
        job_factory(**times, finished_at=end, duration=1000 * length, **more)

    at(0, 5, jid="root", job_type="sync")
    for number in range(20):
        kin = {"parent_jid": "root", "root_jid": "root"}
        at(5 + number, 10, jid=f"child-{number}", job_type="load", **kin)
    kin = {"parent_jid": "child-3", "root_jid": "root"}
    dead = {"state": "dead", "error_type": "FeedError", "error_message": "no rows"}
    at(60, 5, jid="leaf-dead", job_type="mail", **kin, **dead)
    at(70, 90, jid="leaf-last", job_type="mail", **kin)
    return joblog


def test_a_family_is_one_waterfall(page, family):
    """A job's page draws all its descendants on one axis, counted by state, dead ones first."""
    html = page.get("/jobs/root").text
    drawn = html[html.index('id="family"') : html.index('id="timeline"')]
    assert "21 of 22 done" in drawn
    assert len(re.findall(r'<a href="/jobs/child-\d+"', drawn)) >= 20
    assert 'href="/jobs/leaf-dead"' in drawn
    assert "1 of its 22 descendants is dead." in html
    path = unescape(re.sub(r"<[^>]+>", "", drawn[drawn.index('class="path"') :]))
    assert path.index("sync") < path.index("child-3") < path.index("leaf-las")


def test_a_dead_leaf_is_told_to_every_ancestor(page, family):
    """A dead job is reported on the pages of its ancestors, and on no other."""
    for jid, said in (("root", True), ("child-3", True), ("child-4", False), ("leaf-last", False)):
        assert ("is dead." in page.get(f"/jobs/{jid}").text) is said
    html = page.get("/jobs/child-3").text
    assert "Run the dead child again" in html
    assert 'aria-current="true">load' in html


def test_all_of_a_group_is_a_search(page, family):
    """The jobs omitted from a group are linked as a search for the whole group."""
    html = page.get("/jobs/root").text
    href = unescape(re.search(r'class="link more" href="([^"]+)"', html)[1])
    found = page.get(href, headers={"accept": "application/json"}).json()["jobs"]
    assert len(found) == 20


def test_odd_families(page, joblog, job_factory):
    """A family without its first job, and a cyclic one, are drawn too."""
    job_factory(jid="orphan", parent_jid="gone", root_jid="gone")
    job_factory(jid="own", parent_jid="own", root_jid="own")
    job_factory(jid="a", parent_jid="b", root_jid="a")
    job_factory(jid="b", parent_jid="a", root_jid="a")
    for jid in ("orphan", "own", "a", "b"):
        assert page.get(f"/jobs/{jid}").status_code == 200


@pytest.fixture
def changed(joblog, job_factory):
    """Return a log with changes since a week ago."""
    now = datetime.now(timezone.utc)

    def add(days, name, count, duration, **more):
        for number in range(count):
            at = now - timedelta(days=days, minutes=5 + number)
            times = {"created_at": at, "enqueued_at": at, "started_at": at, "finished_at": at}
            job_factory(job_type=name, duration=duration, **times, **more)

    for days in (7, 14):
        add(days, "slow", 40, 1_000)
        add(days, "same", 40, 1_000)
        add(days, "silent", 40, 1_000)
    add(0, "slow", 40, 8_000)
    add(0, "same", 40, 1_000)
    add(0, "new", 5, 1_000)
    add(0, "slow", 2, 1_000, state="dead", error_type="FeedError", actor="load")
    return joblog


@pytest.mark.full
def test_what_changed(page, changed):
    """New and slower things come first, and unchanged things are named."""
    found = page.get("/compare", headers={"accept": "application/json"}).json()["changes"]
    kinds = {(change["kind"], change["name"]) for change in found}
    assert kinds >= {
        ("silent", "silent"),
        ("new", "new"),
        ("error", "FeedError"),
        ("duration", "slow"),
    }
    assert not {name for _, name in kinds} & {"same"}
    assert all(change["surprise"] >= ABOVE for change in found[:3])
    html = page.get("/compare").text
    assert html.index("FeedError") < html.index("As usual")
    assert "same, p95" in html[html.index("As usual") :]


def test_since_when_and_how_many_users(page, changed, job_factory):
    """A new error has its beginning, the mark before it, and the number of users."""
    now = datetime.now(timezone.utc)
    for number in range(6):
        at = now - timedelta(minutes=20 + number)
        facts = {"state": "dead", "error_type": "OddError", "actor": "send", "job_type": "slow"}
        job_factory(created_at=at, finished_at=at, user_id=number % 3, **facts)
    changed.mark("v411", at=now - timedelta(hours=3))
    changed.mark("v412", at=now - timedelta(minutes=40))

    _, _, table = page.get("/compare").text.partition("Most surprising")

    (odd,) = [row for row in table.split("<tr>") if "OddError" in row]
    assert re.search(r'class="cp-s mid">[^<]*\d\d:\d\d, after v412</td>', odd)
    assert 'class="r cp-u nw">3</td>' in odd
    (slow,) = [row for row in table.split("<tr>") if ">slow</a>, p95" in row]
    assert 'class="cp-s mid"></td>' in slow
    assert "v411" not in table


def test_a_time_that_is_no_choice(page, joblog):
    """An unknown period to compare with is refused with a sentence."""
    assert page.get("/compare", params={"with": "never"}).status_code == 400
    assert "nothing to compare with" in page.get("/compare").text


@pytest.mark.parametrize(
    ("now", "before"), [(0, [1.0]), (1, []), (1, [0.0, 0.0]), (float("1e300"), [1e-300])]
)
def test_surprise_of_odd_numbers(now, before):
    """Surprise is never negative."""
    assert surprise(now, before, 10) >= 0
