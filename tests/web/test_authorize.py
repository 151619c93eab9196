"""What ``dashboard(authorize=...)`` may be, and what it may return."""

from __future__ import annotations

import functools

import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.routing import Mount
from starlette.testclient import TestClient

from dramatiq_joblog import JobLog
from dramatiq_joblog.web import dashboard


@pytest.fixture
def joblog(sqlite_database):
    """Return a log with its tables, on SQLite: the database does not matter here."""
    log = JobLog(sqlite_database)
    yield log
    log.close()


def plain(request):
    return "all", "ada"


async def coroutine(request):
    return "all", "ada"


class PlainObject:
    """Decides when it is called, or by an async method."""

    def __call__(self, request):
        return "all", "ada"

    async def method(self, request):
        return "all", "ada"


class AsyncObject:
    """Decides when it is called and awaited."""

    async def __call__(self, request):
        return "all", "ada"


def returns_awaitable(request):
    return coroutine(request)


def with_option(option, request):
    return "all", option


async def async_with_option(option, request):
    return "all", option


CALLABLES = {
    "a function": plain,
    "a coroutine function": coroutine,
    "a function that returns a coroutine": returns_awaitable,
    "an object": PlainObject(),
    "an object's async method": PlainObject().method,
    "an async object": AsyncObject(),
    "a partial": functools.partial(with_option, "ada"),
    "a partial of a coroutine function": functools.partial(async_with_option, "ada"),
    "a partial of an async object": functools.partial(AsyncObject()),
    "a partial of a partial": functools.partial(functools.partial(async_with_option, "ada")),
}


@pytest.mark.few(4)
@pytest.mark.parametrize("kind", CALLABLES)
def test_any_callable_may_decide(joblog, kind):
    """A function, a coroutine function, an object and a partial of each are called and awaited."""
    with TestClient(dashboard(joblog, authorize=CALLABLES[kind])) as client:
        assert 200 == client.get("/").status_code


@pytest.mark.parametrize("mounted", [False, True], ids=["alone", "mounted"])
@pytest.mark.parametrize("kind", ["plain", "async"])
def test_an_http_exception_is_the_answer(joblog, kind, mounted):
    """An HTTPException of authorize becomes the response, with its headers and ours."""
    refusal = HTTPException(401, "Sign in.", headers={"WWW-Authenticate": "Basic"})

    def refuse(request):
        raise refusal

    async def refuse_async(request):
        raise refusal

    page = dashboard(joblog, authorize=refuse if kind == "plain" else refuse_async)
    app = Starlette(routes=[Mount("/jobs", page)]) if mounted else page
    with TestClient(app) as client:
        answer = client.get("/jobs/" if mounted else "/")

    assert 401 == answer.status_code
    assert "Basic" == answer.headers["www-authenticate"]
    assert "Sign in." in answer.text
    assert "no-store" == answer.headers["cache-control"]


@pytest.mark.parametrize("where", ["/", "/jobs.json", "/health", "/do/requeue", "/none"])
def test_a_response_is_sent_instead(joblog, where):
    """A Response of authorize is sent, such as a redirect to the application's login."""
    seen = []

    async def to_login(request):
        seen.append(request.url.path)
        return RedirectResponse("/login-of-the-application", 303)

    with TestClient(dashboard(joblog, authorize=to_login)) as client:
        ask = client.post if where.startswith("/do") else client.get
        answer = ask(where, follow_redirects=False)

    assert 303 == answer.status_code
    assert "/login-of-the-application" == answer.headers["location"]
    assert [where] == seen


@pytest.mark.full
def test_a_raised_response_of_the_framework_of_the_host(joblog):
    """FastAPI's HTTPException is Starlette's, and its detail may be any JSON."""
    from fastapi import HTTPException as FastApiException

    def refuse(request):
        raise FastApiException(403, {"why": "not an admin"})

    with TestClient(dashboard(joblog, authorize=refuse)) as client:
        answer = client.get("/")

    assert 403 == answer.status_code
    assert "not an admin" in answer.text


def test_the_assets_are_never_asked_for(joblog):
    """Styles and scripts are public, even if the application refuses access."""

    def refuse(request):
        return PlainTextResponse("no", 401)

    with TestClient(dashboard(joblog, authorize=refuse)) as client:
        assert 401 != client.get("/static/x/page.css").status_code


def test_what_makes_no_sense_is_said(joblog):
    """Any other result is the application's mistake, and the error names it."""
    with (
        TestClient(dashboard(joblog, authorize=lambda request: "everything")) as client,
        pytest.raises(TypeError, match="authorize returned 'everything'"),
    ):
        client.get("/")
