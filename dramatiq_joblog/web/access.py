"""Who may see the dashboard and who may act: checked first on every request."""

from __future__ import annotations

import asyncio
import hmac
import inspect
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from dramatiq.logging import get_logger
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response

from dramatiq_joblog.payload.functions import is_async

from .door import SESSION_FOR, address_of, is_shared
from .links import Links

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from .door import Door

#: Levels of access: everything; reading; reading without arguments and reports of jobs; nothing.
ALL, READ_ONLY, WITHOUT_ARGUMENTS, NONE = "all", "read-only", "without-arguments", "none"
LEVELS = (ALL, READ_ONLY, WITHOUT_ARGUMENTS, NONE)

#: Only resources of this server, nothing inline, and no framing.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
_HEADERS = {
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
CSRF_COOKIE = "joblog_csrf"
#: The query parameter with the key.
KEY = "key"
#: The form field that repeats the cookie.
CSRF_FIELD = "csrf"
#: The maximum size of a form in bytes, with room for all jids that a page lets a user select; and
#: that of forms from visitors who have not signed in.
MAX_BODY, MAX_SMALL_BODY = 1_000_000, 20_000
#: Seconds within which a form must arrive.
BODY_WITHIN = 30.0
#: The paths that the metrics token opens, and the path of the liveness probe.
METRICS, LIVE = ("/metrics", "/health"), "/live"
#: The path prefix of ticket links, which need no other permission.
TICKETS = "/tickets/"


@dataclass(frozen=True)
class Access:
    """The permissions of a request."""

    level: str
    #: The user's name, as far as known.
    who: str = ""
    #: Why access is denied.
    reason: str = ""

    @property
    def may_read(self) -> bool:
        """Whether reading is allowed."""
        return self.level != NONE

    @property
    def sees_arguments(self) -> bool:
        """Whether arguments, reports and log lines of jobs are visible."""
        return self.level in {ALL, READ_ONLY}

    @property
    def may_act(self) -> bool:
        """Whether actions are allowed, such as requeue, dismiss, cancel and unlock."""
        return self.level == ALL


class Gate:
    """The middleware in front of every route.

    It stores the permissions in the scope, for the routes, and adds the headers that every
    response has.

    Parameters:
      app: The wrapped application.
      authorize: Returns the level of a request; None if *door* decides.
      door: Checks the key, or the name and password.
      metrics_token: The bearer token for metrics and health.
      read_only: Whether all actions are disabled.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        authorize: Callable[[Request], Any] | None,
        door: Door | None,
        metrics_token: str | None,
        read_only: bool,
    ) -> None:
        self._app = app
        self._authorize = authorize
        self._door = door
        self._metrics_token = metrics_token
        self._read_only = read_only
        self._logger = get_logger(__name__, type(self))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Determine the permissions, and pass the request on; the routes check them."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        path = Links(request, "").path
        # Assets are public, because the sign-in page needs them, and so is the liveness probe.
        is_open = path.startswith(("/static/", TICKETS)) or path == LIVE
        access = Access(NONE) if is_open else await self._decide(request, path)
        if isinstance(access, Response):
            # The application's own response must not get our content security policy.
            access.headers.setdefault("cache-control", "no-store")
            await access(scope, receive, send)
            return
        if self._read_only and access.may_act:
            access = Access(READ_ONLY, access.who)
        scope["joblog.access"] = access
        scope["joblog.csrf"] = token = csrf_token(request.cookies)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
                if request.cookies.get(CSRF_COOKIE) != token and is_page(headers):
                    headers.append("set-cookie", _csrf_cookie(request, token))
            await send(message)

        most = MAX_BODY if path.startswith("/do/") else MAX_SMALL_BODY
        try:
            await self._app(scope, _bounded(receive, most), send_with_headers)
        except BodyTooLongError:
            text = f"A form may have at most {most} bytes; nothing was done."
            await PlainTextResponse(text, 413)(scope, receive, send_with_headers)
        except BodyTooSlowError:
            text = f"The form did not arrive within {BODY_WITHIN:g} s; nothing was done."
            await PlainTextResponse(text, 408)(scope, receive, send_with_headers)

    async def _decide(self, request: Request, path: str) -> Access | Response:
        if self._metrics_token is not None and path in METRICS:
            given = _bearer(request)
            if given is not None and _same(given, self._metrics_token):
                return Access(READ_ONLY, "metrics")
        if self._authorize is not None:
            try:
                decision = await decision_of(self._authorize, request)
            except HTTPException as e:
                return answer_of(e)
            return decision if isinstance(decision, Response) else access_of(decision)
        if self._door is None:
            return Access(NONE, reason="Nobody may see this page.")
        return await self._ask_at(self._door, request)

    async def _ask_at(self, door: Door, request: Request) -> Access | Response:
        """Allow access with a session, or with the key in the URL or as a bearer token."""
        in_address = request.query_params.get(KEY) if request.method == "GET" else None
        if door.knows(request.cookies.get(door.cookie, "")):
            if door.by_key and in_address is not None:
                return _without_key(request)
            return Access(ALL, door.name or "key")
        given = in_address or _bearer(request)
        if not door.by_key or given is None:
            return Access(NONE, reason="Sign in first.")
        problem = await try_door(door, request, "", given)
        if problem is not None:
            return Access(NONE, reason=problem.text)
        if in_address is None:
            return Access(ALL, "key")
        response = _without_key(request)
        begin_session(request, response, door)
        return response


def _without_key(request: Request) -> Response:
    """Redirect to the same page without the key, to keep it out of histories and shared links.

    The URL has no host: behind a proxy, the browser's name of the host may be different.
    """
    return RedirectResponse(Links(request, "").here(), 303)


@dataclass(frozen=True)
class Problem:
    """Why access was refused."""

    text: str
    status_code: int


async def try_door(door: Door, request: Request, name: str, secret: str) -> Problem | None:
    """Check a name and a secret; return why they are refused, or None."""
    address = address_of(request)
    delay = door.attempts.delay
    # Counted before the check, so that concurrent attempts count too.
    if not door.attempts.begin(address, is_shared=is_shared(request)):
        return Problem("Too many attempts from your address. Wait a minute.", 429)
    await asyncio.sleep(delay)
    if door.opens(name, secret):
        door.attempts.take_back(address)
        return None
    get_logger(__name__).warning("A sign-in to the page from %s failed.", address)
    text = "This key is wrong." if door.by_key else "This name or password is wrong."
    return Problem(text, 403)


def begin_session(request: Request, response: Response, door: Door) -> None:
    """Set the cookie of a new session."""
    _set_cookie(request, response, door.cookie, door.begin(), max_age=SESSION_FOR)


def end_session(request: Request, response: Response, door: Door) -> None:
    """End a session, and delete its cookie."""
    door.end(request.cookies.get(door.cookie, ""))
    _set_cookie(request, response, door.cookie, "", max_age=0)


class BodyTooLongError(Exception):
    """Raised when a request's body is too long."""


class BodyTooSlowError(Exception):
    """Raised when a request's body does not arrive in time."""


def _bounded(receive: Receive, most: int) -> Receive:
    """Wrap *receive* to stop a body that is too long or too slow."""
    length, is_whole = 0, False
    deadline = time.monotonic() + BODY_WITHIN

    async def bounded() -> Message:
        nonlocal length, is_whole
        if is_whole:
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), deadline - time.monotonic())
        except (TimeoutError, asyncio.TimeoutError) as e:
            raise BodyTooSlowError from e
        is_whole = not message.get("more_body", False)
        if message["type"] == "http.request":
            length += len(message.get("body", b""))
            if length > most:
                raise BodyTooLongError
        return message

    return bounded


def _bearer(request: Request) -> str | None:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())


async def decision_of(authorize: Callable[..., Any], *asked: Any) -> Any:
    """Return the result of *authorize*: awaited if it is async, else called in a thread."""
    if is_async(authorize):
        return await authorize(*asked)
    decision = await run_in_threadpool(authorize, *asked)
    return await decision if inspect.isawaitable(decision) else decision


def answer_of(refusal: HTTPException) -> Response:
    """Return the response for an HTTP exception; the detail of FastAPI's may be any JSON."""
    code, headers = refusal.status_code, refusal.headers
    detail: object = refusal.detail
    if code in {204, 304}:
        return Response(status_code=code, headers=headers)
    if isinstance(detail, str):
        return PlainTextResponse(detail, code, headers)
    return JSONResponse({"detail": detail}, code, headers)


def access_of(decision: Any) -> Access:
    """Convert the result of ``authorize``: a level, or a level and a name.

    Raises:
      TypeError: If it is neither.
    """
    level, who = decision if isinstance(decision, tuple) and len(decision) == 2 else (decision, "")
    level = NONE if level is None else level
    if level not in LEVELS:
        raise TypeError(
            f"authorize returned {decision!r}; it must return one of {LEVELS} or None, "
            "alone or in a tuple with who it is, or a Response"
        )
    if level == NONE:
        return Access(NONE, str(who), "You may not see this page.")
    return Access(level, str(who))


def csrf_token(cookies: Mapping[str, str]) -> str:
    """Return the browser's CSRF token, or a new one."""
    known = cookies.get(CSRF_COOKIE, "")
    return known if len(known) == 43 and known.isascii() else secrets.token_urlsafe(32)


def check_csrf(request: Request, given: Any) -> str | None:
    """Return why a form was not sent from this dashboard, or None if it was."""
    if not _is_from_here(request):
        return "The form was sent from another site; nothing was done."
    kept = request.cookies.get(CSRF_COOKIE, "")
    if not kept or not hmac.compare_digest(kept.encode(), str(given or "").encode()):
        return "The form is older than this browser's session; nothing was done. Go back, reload."
    return None


def _is_from_here(request: Request) -> bool:
    """Return whether a request has no header that names another origin."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        # More reliable than Host, which a proxy may have replaced.
        return site in {"same-origin", "none"}
    origin = request.headers.get("origin", "null")
    return origin == "null" or origin.partition("://")[2] == request.headers.get("host")


def _csrf_cookie(request: Request, token: str) -> str:
    response = Response()
    _set_cookie(request, response, CSRF_COOKIE, token, samesite="strict")
    return response.headers["set-cookie"]


def _set_cookie(
    request: Request,
    response: Response,
    name: str,
    value: str,
    *,
    max_age: int | None = None,
    samesite: Literal["lax", "strict"] = "lax",
) -> None:
    """Set a cookie for this dashboard alone."""
    response.set_cookie(
        name,
        value,
        httponly=True,
        max_age=max_age,
        path=Links(request, "").root or "/",
        samesite=samesite,
        secure=request.scope.get("scheme") == "https",
    )


def is_page(headers: MutableHeaders) -> bool:
    """Return whether a response is a page, not an asset or data."""
    return headers.get("content-type", "").startswith("text/html")
