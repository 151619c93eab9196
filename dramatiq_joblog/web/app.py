"""``dashboard()``: the page as an ASGI application, with all of its state in that object."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from dramatiq_joblog.errors import ConfigurationError

from . import actions, dead, job, jobs, overview
from . import live as now
from . import probes as status
from .access import CSRF_FIELD, SESSION_COOKIE, SESSION_FOR, Gate, Login, check_csrf, cookie
from .assets import asset
from .context import Visit
from .state import Site

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from starlette.requests import Request

    from dramatiq_joblog.joblog import JobLog

#: Milliseconds between two looks for what is new.
DEFAULT_EVERY = 2_000
#: Milliseconds that the database may take for one part of a page.
DEFAULT_TIMEOUT = 3_000


def dashboard(
    joblog: JobLog,
    *,
    authorize: Callable[[Request], Any] | None = None,
    broker: Any = None,
    environment: str | None = None,
    every: int = DEFAULT_EVERY,
    job_links: Callable[[Any], Iterable[tuple[str, str]]] | None = None,
    login: tuple[str, str] | None = None,
    read_only: bool = False,
    timeout: int = DEFAULT_TIMEOUT,
    title: str = "joblog",
) -> Starlette:
    """Return the web page of a log, an ASGI application that may be mounted anywhere.

    Only requests from this very machine are answered unless *authorize* or *login* is given.

    Parameters:
      joblog: The log.
      authorize: Is called with each request and returns ``"all"``, ``"read-only"`` or None; or
        a tuple of that and who it is, for the log of actions; or a Response to send instead,
        such as a redirect to the application's sign-in page.  It may raise Starlette's
        ``HTTPException``.  Any callable will do: an async one is awaited, any other is called
        in a thread.
      broker: Where jobs that are run again are sent; by default where this process declared
        its actors.
      environment: A word beside the title, as ``"production"``.
      every: Milliseconds between two looks for what is new.
      job_links: Is called with a job, and returns pairs of a text and a link to pages of the
        application's own.
      login: A name and a password to sign in with.
      read_only: Nobody may run again, dismiss, cancel or unlock, whatever *authorize* says.
      timeout: Milliseconds that the database may take for one part of a page.
      title: The name of the page.

    Raises:
      ConfigurationError: If both *authorize* and *login* are given, or a value makes no sense.
    """
    if authorize is not None and login is not None:
        raise ConfigurationError(
            "authorize= and login= are both given; give one: authorize= may ask for a password too"
        )
    if login is not None and not (len(login) == 2 and all(isinstance(t, str) and t for t in login)):
        raise ConfigurationError("login= must be a name and a password, neither of them empty")
    for name, value in (("every", every), ("timeout", timeout)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 100:
            raise ConfigurationError(
                f"{name}={value!r} must be a whole number of milliseconds, at least 100"
            )
    site = Site(
        joblog=joblog,
        broker=broker,
        environment=environment,
        every=every,
        job_links=job_links,
        login=None if login is None else Login(login),
        timeout=timeout,
        title=title,
    )
    gate = Middleware(Gate, authorize=authorize, login=site.login, read_only=read_only)
    return Starlette(
        routes=_routes(site),
        middleware=[gate],
        exception_handlers={
            404: partial(_failed, site),
            405: partial(_failed, site),
        },
    )


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
        "/workers": now.workers,
        "/workers.json": now.workers,
        "/actions": dead.actions,
        "/actions.json": dead.actions,
        "/complete": jobs.complete,
        "/confirm/{what}": actions.confirm,
        "/health": status.health,
        "/metrics": status.metrics,
    }
    return [
        *(Route(path, _read(site, ask), methods=["GET"]) for path, ask in reads.items()),
        Route("/do/{what}", _act(site), methods=["POST"]),
        Route("/login", _show_login(site), methods=["GET"]),
        Route("/login", _sign_in(site), methods=["POST"]),
        Route("/logout", _sign_out(site), methods=["POST"]),
        Route("/static/{version}/{path:path}", asset, methods=["GET"]),
    ]


def _read(site: Site, ask: Callable[[Visit], Response]) -> Callable[[Request], Response]:
    def endpoint(request: Request) -> Response:
        visit = Visit(site, request)
        if refusal := visit.refusal():
            return refusal
        return visit.run(ask)

    return endpoint


def _act(site: Site) -> Callable[[Request], Any]:
    async def endpoint(request: Request) -> Response:
        visit = Visit(site, request)
        if refusal := visit.refusal():
            return refusal
        form = await request.form(max_fields=5_000, max_files=0)
        if not visit.access.may_act:
            return visit.sorry(403, "Not allowed", "You may look here, and nothing else.")
        if problem := check_csrf(request, form.get(CSRF_FIELD)):
            return visit.sorry(403, "Not done", problem)
        return await run_in_threadpool(visit.run, partial(actions.do, form=form))

    return endpoint


def _show_login(site: Site) -> Callable[[Request], Response]:
    def endpoint(request: Request) -> Response:
        visit = Visit(site, request)
        if site.login is None:
            return visit.sorry(404, "Not here", "There is no sign-in on this page.")
        return visit.page("login.html", "Sign in", {"next": request.query_params.get("next", "")})

    return endpoint


def _sign_in(site: Site) -> Callable[[Request], Any]:
    async def endpoint(request: Request) -> Response:
        visit = Visit(site, request)
        if site.login is None:
            return visit.sorry(404, "Not here", "There is no sign-in on this page.")
        form = await request.form(max_fields=10, max_files=0)
        name, password = str(form.get("name", "")), str(form.get("password", ""))
        problem = check_csrf(request, form.get(CSRF_FIELD))
        status_code = 403
        if problem is None and site.login.is_tried_too_often():
            problem, status_code = "Too many tries. Wait a minute.", 429
        if problem is None and not site.login.is_right(name, password):
            problem = "That is not the name and password."
        following = str(form.get("next", ""))
        facts = {"next": following, "name": name, "problem": problem}
        if problem is not None:
            return visit.page("login.html", "Sign in", facts, status_code=status_code)
        response = RedirectResponse(visit.link.local(following), 303)
        session = site.login.session(visit.now.timestamp())
        response.headers.append(
            "set-cookie", cookie(request, SESSION_COOKIE, session, seconds=SESSION_FOR)
        )
        return response

    return endpoint


def _sign_out(site: Site) -> Callable[[Request], Any]:
    async def endpoint(request: Request) -> Response:
        visit = Visit(site, request)
        form = await request.form(max_fields=10, max_files=0)
        if problem := check_csrf(request, form.get(CSRF_FIELD)):
            return visit.sorry(403, "Not done", problem)
        response = RedirectResponse(visit.link("login"), 303)
        response.headers.append("set-cookie", cookie(request, SESSION_COOKIE, "", seconds=0))
        return response

    return endpoint


def _failed(site: Site, request: Request, error: Exception) -> Response:
    """Answer what no route answers, as a page if the sender may see one."""
    visit = Visit(site, request)
    if refusal := visit.refusal():
        return refusal
    code = getattr(error, "status_code", 500)
    if code == 405:
        response = visit.sorry(405, "Not this way", f"{request.method} is not answered here.")
        response.headers.update(getattr(error, "headers", None) or {})
        return response
    return visit.sorry(404, "Not here", f"There is no page {visit.link.path!r}.")
