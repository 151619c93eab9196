"""``dashboard()``: the dashboard as an ASGI application that holds all its state."""

from __future__ import annotations

import secrets
from datetime import timezone
from functools import partial
from typing import TYPE_CHECKING, Any

from dramatiq.logging import get_logger
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from dramatiq_joblog.asking.threads import BusyError, UnansweredError
from dramatiq_joblog.errors import ConfigurationError
from dramatiq_joblog.joblog import given_broker, given_log
from dramatiq_joblog.payload.functions import check_function
from dramatiq_joblog.payload.given import given_flag, given_optional, given_text, given_whole

from . import (
    actions,
    alerts,
    choose_zone,
    compare,
    confirm,
    dead,
    job,
    jobs,
    overview,
    queues,
    tickets,
    types,
    users,
    zones,
)
from . import live as now
from . import probes as status
from .access import (
    CSRF_FIELD,
    LIVE,
    READ_ONLY,
    TICKETS,
    Gate,
    begin_session,
    check_csrf,
    end_session,
    try_door,
)
from .assets import asset
from .context import Visit
from .door import Door
from .root_paths import WholePath
from .sending import packed
from .state import Site

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from starlette.requests import Request

    from dramatiq_joblog.joblog import JobLog

#: Milliseconds between two updates of a live page.
DEFAULT_EVERY = 2_000
#: Milliseconds that the database may take for one part of a page.
DEFAULT_TIMEOUT = 3_000
#: Milliseconds that a response may take after its database connection is cut.
_LATER = 1_000
#: The text of the page for links that an export does not contain.
_NOT_COPIED = (
    "This is a static copy of the page: its links lead to some of its pages. Searches, older "
    "pages and actions need the page itself: dramatiq-joblog web."
)
#: The minimum length of a key or token.
MIN_KEY = 16


def dashboard(
    joblog: JobLog[Any],
    *,
    authorize: Callable[[Request], Any] | None = None,
    broker: Any = None,
    environment: str | None = None,
    every: int = DEFAULT_EVERY,
    job_links: Callable[[Any], Iterable[tuple[str, str]]] | None = None,
    key: str | None = None,
    login: tuple[str, str] | None = None,
    metrics_token: str | None = None,
    read_only: bool = False,
    time_zone: str = "UTC",
    timeout: int = DEFAULT_TIMEOUT,
    title: str = "joblog",
) -> Starlette:
    """Return the dashboard of a log: an ASGI application that can be mounted anywhere.

    Access always needs *authorize*, *login* or a key.  If none is given, a key is created and
    written to the server's log: open the dashboard once with ``?key=...`` after its URL.

    Parameters:
      joblog: The log.
      authorize: A callable that receives each request and returns ``"all"``, ``"read-only"``,
        ``"without-arguments"`` or None; or a tuple of that and the user's name, for the audit
        log; or a Response to send instead, such as a redirect to the application's sign-in page.
        It may raise Starlette's ``HTTPException``.  An async callable is awaited; any other is
        called in a thread.
      broker: The broker for jobs that are run again; by default the one on which this process
        declared its actors.
      environment: A label next to the title, such as ``"production"``.
      every: Milliseconds between two updates of a live page.
      job_links: A callable that receives a job and returns pairs of text and URL, for links
        to pages of your application.
      key: A key for access, of at least 16 characters.  Give one if several processes serve the
      dashboard, because otherwise each creates its own.
      login: A name and a password to sign in with.
      metrics_token: A bearer token that opens ``/metrics`` and ``/health``, and nothing else.
      read_only: Disable all actions, whatever *authorize* returns.
      time_zone: The default time zone, such as ``"Europe/Berlin"``.
      timeout: Milliseconds that the database may take for one part of a page.
      title: The title of the dashboard.

    Raises:
      ConfigurationError: If both *authorize* and *login* are given, or a value is invalid.
    """
    if authorize is not None:
        check_function("authorize=", authorize, "a request")
    if job_links is not None:
        check_function("job_links=", job_links, "a job")
    given_log(joblog)
    given_broker(broker)
    given_optional("environment", environment)
    given_flag("read_only", read_only)
    given_text("title", title, "the name of the page")
    door = _door(authorize, key, login)
    if metrics_token is not None:
        _check_key("metrics_token", metrics_token)
    for name, value in (("every", every), ("timeout", timeout)):
        given_whole(name, value, least=100)
    _check_zone(time_zone)
    site = Site(
        joblog=joblog,
        broker=broker,
        environment=environment,
        every=every,
        job_links=job_links,
        door=door,
        time_zone=time_zone,
        timeout=timeout,
        title=title,
    )
    gate = Middleware(
        Gate, authorize=authorize, door=door, metrics_token=metrics_token, read_only=read_only
    )
    return _application(site, gate)


def frozen_page(
    joblog: JobLog[Any], *, environment: str | None, time_zone: str, title: str
) -> Starlette:
    """Return the dashboard for an export: without live updates and actions.

    Raises:
      ConfigurationError: If the time zone is unknown.
    """
    _check_zone(time_zone)
    site = Site(
        joblog=joblog,
        broker=None,
        environment=environment,
        every=DEFAULT_EVERY,
        job_links=None,
        door=None,
        time_zone=time_zone,
        # No user waits for it.
        timeout=10 * DEFAULT_TIMEOUT,
        title=title,
        frozen=True,
    )
    gate = Middleware(Gate, authorize=_look_only, door=None, metrics_token=None, read_only=True)
    return _application(site, gate)


def _look_only(_: Request) -> str:
    return READ_ONLY


def _application(site: Site, gate: Middleware) -> Starlette:
    app = Starlette(
        routes=_routes(site),
        middleware=[Middleware(WholePath), gate],
        exception_handlers={
            404: partial(_failed, site),
            405: partial(_failed, site),
        },
    )
    # It would redirect to the request's Host, which a proxy may have replaced; see _failed().
    app.router.redirect_slashes = False
    return app


def _check_key(name: str, key: Any) -> None:
    # The value may be a mistyped secret, so do not show it.
    if not isinstance(key, str) or len(key) < MIN_KEY:
        raise ConfigurationError(f"{name}= must be a text of at least {MIN_KEY} characters")


def _check_zone(time_zone: Any) -> None:
    given_text("time_zone", time_zone, "the name of a time zone, such as 'Europe/Berlin'")
    if time_zone != "UTC" and zones.zone_of(time_zone) is timezone.utc:
        raise ConfigurationError(
            f"time_zone={time_zone!r} is not a time zone; use one such as 'Europe/Berlin'"
        )


def _door(authorize: Any, key: str | None, login: tuple[str, str] | None) -> Door | None:
    """Return the configured door, with a new key if there is no other."""
    given = {"authorize": authorize, "key": key, "login": login}
    names = [f"{name}=" for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise ConfigurationError(
            f"{' and '.join(names)} are both given; give one: authorize= may ask for a password too"
        )
    if login is not None:
        if not (
            isinstance(login, (tuple, list))
            and len(login) == 2
            and all(isinstance(text, str) and text for text in login)
        ):
            raise ConfigurationError("login= must be a name and a password, neither of them empty")
        return Door(login[1], name=login[0])
    if authorize is not None:
        return None
    if key is None:
        key = secrets.token_urlsafe(24)
        get_logger(__name__).warning(
            "The page has no authorize=, login= or key=. It opens by this key, once after its "
            "address: ?key=%s",
            key,
        )
    _check_key("key", key)
    return Door(key)


def _routes(site: Site) -> list[Route]:
    reads = {
        "/": overview.overview,
        "/overview.json": overview.overview,
        "/jobs": jobs.jobs,
        "/jobs.json": jobs.jobs,
        "/jobs/{jid:path}": job.job,
        "/dead": dead.dead,
        "/dead.json": dead.dead,
        "/locks": now.locks,
        "/locks.json": now.locks,
        "/queues": queues.queues,
        "/queues.json": queues.queues,
        "/queues/{name:path}": queues.queues,
        "/types": types.types,
        "/types.json": types.types,
        "/types/{name:path}": types.one_type,
        "/users/{user:path}": users.user,
        "/workers": now.workers,
        "/workers.json": now.workers,
        "/actions": dead.actions,
        "/actions.json": dead.actions,
        "/alerts": alerts.alerts,
        "/alerts.json": alerts.alerts,
        "/compare": compare.compare,
        "/compare.json": compare.compare,
        "/complete": jobs.complete,
        "/confirm/{what}": confirm.confirm,
        "/zone": choose_zone.show,
        "/health": status.health,
        "/metrics": status.metrics,
    }
    return [
        *(Route(path, _read(site, ask), methods=["GET"]) for path, ask in reads.items()),
        Route("/do/{what}", _act(site), methods=["POST"]),
        Route("/zone", _set_zone(site), methods=["POST"]),
        Route(f"{TICKETS}{{token}}", _show_ticket(site), methods=["GET"]),
        Route("/login", _show_login(site), methods=["GET"]),
        Route("/login", _sign_in(site), methods=["POST"]),
        Route("/logout", _sign_out(site), methods=["POST"]),
        Route(LIVE, _lives, methods=["GET"]),
        Route("/static/{version}/{path:path}", asset, methods=["GET"]),
    ]


def _read(site: Site, ask: Callable[[Visit], Response]) -> Callable[[Request], Any]:
    async def endpoint(request: Request) -> Response:
        visit = Visit(site, request)
        if refusal := visit.refusal():
            return refusal
        return await _in_a_thread(visit, ask)

    return endpoint


def _show_ticket(site: Site) -> Callable[[Request], Any]:
    async def endpoint(request: Request) -> Response:
        return await _in_a_thread(Visit(site, request), tickets.show)

    return endpoint


def _act(site: Site) -> Callable[[Request], Any]:
    async def endpoint(request: Request) -> Response:
        visit = Visit(site, request)
        if refusal := visit.refusal():
            return refusal
        if not visit.access.may_act:
            return visit.sorry(403, "Not allowed", "You have read-only access.")
        form = await request.form(max_fields=5_000, max_files=0)
        if problem := check_csrf(request, form.get(CSRF_FIELD)):
            return visit.sorry(403, "Not done", problem)
        return await _in_a_thread(visit, partial(actions.do, form=form))

    return endpoint


async def _in_a_thread(visit: Visit, answer: Callable[[Visit], Response]) -> Response:
    """Respond from a thread of the dashboard; with 503 if none is free or it is too slow."""
    try:
        return await visit.site.threads.run(
            partial(_packed, visit, answer), within=(visit.patience + _LATER) / 1000
        )
    except BusyError:
        return visit.busy()
    except UnansweredError:
        return visit.no_answer()


def _packed(visit: Visit, answer: Callable[[Visit], Response]) -> Response:
    return packed(visit.request, visit.run(answer))


async def _lives(_: Request) -> Response:
    return PlainTextResponse("ok")


def _set_zone(site: Site) -> Callable[[Request], Any]:
    async def endpoint(request: Request) -> Response:
        visit = Visit(site, request)
        if refusal := visit.refusal():
            return refusal
        return choose_zone.choose(visit, await request.form(max_fields=10, max_files=0))

    return endpoint


def _show_login(site: Site) -> Callable[[Request], Response]:
    def endpoint(request: Request) -> Response:
        visit = Visit(site, request)
        if site.door is None:
            return visit.sorry(404, "No such page", "There is no sign-in on this page.")
        following = request.query_params.get("next", "")
        if visit.access.may_read:
            return RedirectResponse(visit.link.local(following), 303)
        return visit.page("login.html", "Sign in", {"next": following})

    return endpoint


def _sign_in(site: Site) -> Callable[[Request], Any]:
    async def endpoint(request: Request) -> Response:
        visit = Visit(site, request)
        if site.door is None:
            return visit.sorry(404, "No such page", "There is no sign-in on this page.")
        form = await request.form(max_fields=10, max_files=0)
        name, secret = str(form.get("name", "")), str(form.get("password", ""))
        following = str(form.get("next", ""))
        facts: dict[str, Any] = {"next": following, "name": name}
        if problem := check_csrf(request, form.get(CSRF_FIELD)):
            facts["problem"] = problem
            return visit.page("login.html", "Sign in", facts, status_code=403)
        if refused := await try_door(site.door, request, name, secret):
            facts["problem"] = refused.text
            return visit.page("login.html", "Sign in", facts, status_code=refused.status_code)
        response = RedirectResponse(visit.link.local(following), 303)
        begin_session(request, response, site.door)
        return response

    return endpoint


def _sign_out(site: Site) -> Callable[[Request], Any]:
    async def endpoint(request: Request) -> Response:
        visit = Visit(site, request)
        form = await request.form(max_fields=10, max_files=0)
        if problem := check_csrf(request, form.get(CSRF_FIELD)):
            return visit.sorry(403, "Not done", problem)
        response = RedirectResponse(visit.link("login"), 303)
        if site.door is not None:
            end_session(request, response, site.door)
        return response

    return endpoint


def _failed(site: Site, request: Request, error: Exception) -> Response:
    """Respond to an error outside the routes; as a page if the sender may see one."""
    visit = Visit(site, request)
    if visit.link.path.startswith("/static/"):
        # Assets are public, so a missing one may be reported to anyone.
        return PlainTextResponse("There is no such file.", 404)
    if refusal := visit.refusal():
        return refusal
    if site.frozen:
        return visit.sorry(404, "Not in this copy", _NOT_COPIED)
    code = getattr(error, "status_code", 500)
    if code == 405:
        response = visit.sorry(405, "Not allowed", f"{request.method} is not allowed here.")
        response.headers.update(getattr(error, "headers", None) or {})
        return response
    if request.method == "GET" and len(visit.link.path) > 1 and visit.link.path.endswith("/"):
        target = visit.link.here().replace("/?", "?").rstrip("/")
        return RedirectResponse(visit.link.local(target), 303)
    return visit.sorry(404, "No such page", f"There is no page {visit.link.path!r}.")
