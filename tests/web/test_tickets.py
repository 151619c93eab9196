"""Ticket links: one user's jobs of a period, for a week, and nothing else."""

from __future__ import annotations

import re
import time

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from dramatiq_joblog import JobLog
from dramatiq_joblog.web import dashboard

KEY = "a key of the tests, long enough"
SECRET = "s3cret-4711"
DAY = 86_400_000


@pytest.fixture
def log(sqlite_database):
    """Return a log with jobs of two users."""
    log = JobLog(sqlite_database)
    now = time.time_ns() // 1_000_000
    for number, (user, state) in enumerate((("7", "dead"), ("7", "finished"), ("8", "finished"))):
        log.Job.create(
            jid=f"{number}-of-user-{user}", actor="work", queue="default", state=state, attempt=1,
            user_id=user, created_at=now - 60_000, updated_at=now, started_at=now - 30_000,
            finished_at=now, duration=30_000, args=[SECRET], section=f"shop:{SECRET}",
            error_type="FeedError" if state == "dead" else None,
            error_message=f"no {SECRET}", progress={"text": SECRET},
        )  # fmt: skip
    yield log
    log.close()


def client(app, **settings):
    """Return a client without redirects."""
    settings = {"base_url": "http://localhost", "follow_redirects": False} | settings
    return TestClient(app, **settings)


def form_of(asking, user="7", root=""):
    """Return the fields of the form on the page of a user."""
    page = asking.get(f"{root}/users/{user}").text
    form = re.search(r"<form [^>]*/do/ticket.*?</form>", page, re.DOTALL).group()
    return dict(re.findall(r'name="(\w+)" value="([^"]*)"', form))


def made(asking, user="7", root=""):
    """Create a link on a user's page, and return it."""
    answer = asking.post(f"{root}/do/ticket", data=form_of(asking, user, root))
    assert answer.status_code == 200, answer.text
    return re.search(rf'href="({root}/tickets/[^"]+)"', answer.text).group(1)


@pytest.mark.parametrize("root", ["", "/ops"])
def test_a_link_opens_for_everyone(log, root):
    """It shows that user's jobs without arguments, needs no key, and has no link to the rest."""
    page = dashboard(log, key=KEY)
    app = Starlette(routes=[Mount(root, page)]) if root else page
    inside, outside = client(app), client(app)
    inside.get(f"{root}/", params={"key": KEY})

    href = made(inside, root=root)

    shown = outside.get(href)
    assert shown.status_code == 200
    assert "FeedError" in shown.text
    assert "0-of-use" in shown.text
    assert "2-of-use" not in shown.text
    assert SECRET not in shown.text
    links = re.findall(r'(?:href|action)="([^"#]*)"', shown.text)
    assert {link.removeprefix(root).split("/")[1] for link in links} <= {"static", ""}
    assert "no-referrer" == shown.headers["referrer-policy"]
    for path in ("/", "/jobs/0-of-user-7", "/users/7", "/users/8"):
        assert outside.get(root + path).status_code == 303, path


def test_it_is_written_down(log):
    """A link's author, user and period are recorded, without its URL."""
    asking = client(dashboard(log, authorize=lambda request: ("all", "ada")))
    href = made(asking)

    (action,) = log.actions
    assert ("ticket", "ada") == (action.what, action.who)
    assert action.detail.startswith("user 7, ")
    shown = asking.get("/actions").text
    assert "made a link for a ticket" in shown
    assert action.key not in shown
    token = href.rpartition("/")[2].partition("-")[2]
    assert token not in repr(action.as_dict())


def test_it_is_for_one_time(log):
    """Jobs sent after the link was created are not in it."""
    asking = client(dashboard(log, key=KEY))
    asking.get("/", params={"key": KEY})
    href = made(asking)

    log.Job.update(created_at=time.time_ns() // 1_000_000 + 60_000).execute()
    assert "0-of-use" not in asking.get(href).text


def test_a_week_ends_it(log):
    """After a week it is invalid."""
    asking = client(dashboard(log, key=KEY))
    asking.get("/", params={"key": KEY})
    href = made(asking)
    log.Action.update(at=time.time_ns() // 1_000_000 - 7 * DAY - 1).execute()

    assert asking.get(href).status_code == 404


def test_one_that_is_made_up_opens_nothing(log):
    """A changed digit, number or user in a URL is refused, as is any other text."""
    asking = client(dashboard(log, key=KEY))
    asking.get("/", params={"key": KEY})
    href, other = made(asking), made(asking, user="8")
    number, _, token = href.rpartition("/")[2].partition("-")
    swapped = other.rpartition("-")[2]
    log.dismiss("0-of-user-7", who="ada")

    outside = client(dashboard(log, key=KEY))
    for wrong in (
        *(f"{number}-{token[:-1]}", f"{number}-{token}A", f"{number}-{swapped}", f"9-{token}"),
        *(f"3-{token}", token, number, f"{number}-", "-", "x", f"{'9' * 18}-{token}"),
        "1-" + "A" * 40,
    ):
        answer = outside.get(f"/tickets/{wrong}")
        assert answer.status_code in {303, 404}, wrong
        assert "user-7" not in answer.text


@pytest.mark.parametrize("level", ["read-only", "without-arguments"])
def test_who_may_only_look_makes_none(log, level):
    """The button and the form are only for users who may act."""
    asking = client(dashboard(log, authorize=lambda request: level))

    assert "/do/ticket" not in asking.get("/users/7").text
    form = {"csrf": asking.cookies["joblog_csrf"], "user": "7", "since": "1"}
    assert asking.post("/do/ticket", data=form).status_code == 403
    assert log.actions.count() == 0


@pytest.mark.parametrize(
    "fields", [{"user": ""}, {"range": "9h"}, {"since": "x"}, {"until": "1h"}, {"since": "9" * 20}]
)
def test_forms_that_make_no_sense(log, fields):
    """Without a user or a period there is no link, and nothing is recorded."""
    asking = client(dashboard(log, authorize=lambda request: "all"))
    assert asking.post("/do/ticket", data=form_of(asking) | fields).status_code == 400
    assert log.actions.count() == 0
