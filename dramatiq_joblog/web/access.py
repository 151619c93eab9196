"""Who may see the page and who may act: asked on every request, before anything else."""

from __future__ import annotations

import functools
import hashlib
import hmac
import inspect
import ipaddress
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: What a person may do: everything, look, nothing.
ALL, READ_ONLY, NONE = "all", "read-only", "none"
LEVELS = (ALL, READ_ONLY, NONE)

#: Nothing is fetched from elsewhere, nothing stands inline, and nobody may frame the page.
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
#: A proxy says by these that the request came from elsewhere.
_FORWARDED = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip")

CSRF_COOKIE, SESSION_COOKIE = "joblog_csrf", "joblog_session"
#: The name of the field that repeats the cookie.
CSRF_FIELD = "csrf"
#: Seconds that a sign-in lasts.
SESSION_FOR = 12 * 3600
#: A name and password may be wrong so often within a minute.
WRONG_AT_MOST = 10


@dataclass(frozen=True)
class Access:
    """What the sender of a request may do."""

    level: str
    #: Who it is, as far as it is known.
    who: str = ""
    #: Why it may do nothing.
    reason: str = ""

    @property
    def may_read(self) -> bool:
        """Whether it may look."""
        return self.level in {ALL, READ_ONLY}

    @property
    def may_act(self) -> bool:
        """Whether it may run again, dismiss, cancel and unlock."""
        return self.level == ALL


class Login:
    """One name and password, kept in a signed cookie once they were given.

    The key of the signature is made of them: all processes share it, and a new password ends
    every session.

    Parameters:
      credentials: The name and the password.
    """

    def __init__(self, credentials: tuple[str, str]) -> None:
        self._name, self._password = credentials
        self._key = hashlib.scrypt(
            self._password.encode(), salt=b"joblog " + self._name.encode(), n=2**14, r=8, p=1
        )
        self._wrong: list[float] = []

    def is_right(self, name: str, password: str) -> bool:
        """Tell whether these are the name and the password, in the same time if not."""
        right = hmac.compare_digest(name.encode(), self._name.encode())
        right &= hmac.compare_digest(password.encode(), self._password.encode())
        if not right:
            self._wrong.append(time.monotonic())
        return right

    def is_tried_too_often(self) -> bool:
        """Tell whether someone guesses."""
        self._wrong = [at for at in self._wrong if at > time.monotonic() - 60]
        return len(self._wrong) >= WRONG_AT_MOST

    def session(self, now: float) -> str:
        """Return a cookie's value that is good for a while."""
        until = str(int(now) + SESSION_FOR)
        return f"{until}.{self._sign(until)}"

    def who(self, session: str, now: float) -> str | None:
        """Return whose session it is, or None if it is none, or over."""
        until, _, signature = session.partition(".")
        if not hmac.compare_digest(signature.encode(), self._sign(until).encode()):
            return None
        return self._name if int(until) > now else None

    def _sign(self, until: str) -> str:
        return hmac.new(self._key, f"session {until}".encode(), "sha256").hexdigest()


class Gate:
    """The middleware in front of every route.

    It notes what the sender may do in the scope, for the routes, and adds the headers that
    every answer has.

    Parameters:
      app: What stands behind it.
      authorize: Tells the level of a request; None for local requests only.
      login: A name and password instead.
      read_only: Nobody may act.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        authorize: Callable[[Request], Any] | None,
        login: Login | None,
        read_only: bool,
    ) -> None:
        self._app = app
        self._authorize = authorize
        self._login = login
        self._read_only = read_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Decide, and pass the request on: the routes refuse what is not allowed."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        # Anyone may have the assets, as the sign-in page needs them too: nobody is asked.
        asset = scope["path"].removeprefix(scope.get("root_path", "")).startswith("/static/")
        access = Access(NONE) if asset else await self._decide(request)
        if isinstance(access, Response):
            # The application's own answer: its page must not get our content policy.
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
                    headers.append("set-cookie", cookie(request, CSRF_COOKIE, token))
            await send(message)

        await self._app(scope, receive, send_with_headers)

    async def _decide(self, request: Request) -> Access | Response:
        if self._authorize is not None:
            try:
                decision = await _call(self._authorize, request)
            except HTTPException as e:
                return _answer_of(e)
            return decision if isinstance(decision, Response) else told_access(decision)
        if self._login is not None:
            session = request.cookies.get(SESSION_COOKIE, "")
            who = self._login.who(session, time.time())
            return Access(NONE, reason="Sign in first.") if who is None else Access(ALL, who)
        return local_access(request)


async def _call(authorize: Callable[[Request], Any], request: Request) -> Any:
    """Return what *authorize* decides: awaited if it is async, else called in a thread."""
    if _is_async(authorize):
        return await authorize(request)
    decision = await run_in_threadpool(authorize, request)
    return await decision if inspect.isawaitable(decision) else decision


def _is_async(function: Any) -> bool:
    """Return whether a callable is a coroutine function, an async object, or a partial of one."""
    while isinstance(function, functools.partial):
        function = function.func
    return any(map(inspect.iscoroutinefunction, (function, type(function).__call__)))


def _answer_of(refusal: HTTPException) -> Response:
    """Return the answer that an HTTP exception stands for; FastAPI's may have any JSON in it."""
    code, headers = refusal.status_code, refusal.headers
    detail: object = refusal.detail
    if code in {204, 304}:
        return Response(status_code=code, headers=headers)
    if isinstance(detail, str):
        return PlainTextResponse(detail, code, headers)
    return JSONResponse({"detail": detail}, code, headers)


def told_access(told: Any) -> Access:
    """Read what a user's ``authorize`` returned: a level, or a level and who it is.

    Raises:
      TypeError: If it is neither.
    """
    level, who = told if isinstance(told, tuple) and len(told) == 2 else (told, "")
    level = NONE if level is None else level
    if level not in LEVELS:
        raise TypeError(
            f"authorize returned {told!r}; it must return one of {LEVELS} or None, "
            "alone or in a tuple with who it is, or a Response"
        )
    if level == NONE:
        return Access(NONE, str(who), "You may not see this page.")
    return Access(level, str(who))


def local_access(request: Request) -> Access:
    """Allow everything to this very machine, and nothing to anyone else.

    The sender's address decides.  A proxy on this machine passes on what comes from elsewhere,
    and a page elsewhere may have a name that points here, so both of their marks are looked for.
    """
    closed = "Only requests from this machine are answered: give authorize= or login= to dashboard."
    if request.client is None or not _is_loopback(request.client.host):
        return Access(NONE, reason=closed)
    if any(name in request.headers for name in _FORWARDED):
        return Access(NONE, reason=f"The request came through a proxy. {closed}")
    host = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    if not (_is_loopback(host) or host == "localhost" or host.endswith(".localhost")):
        return Access(NONE, reason=f"{host!r} is no name of this machine alone. {closed}")
    return Access(ALL, "local")


def csrf_token(cookies: Mapping[str, str]) -> str:
    """Return the browser's token, or a new one."""
    known = cookies.get(CSRF_COOKIE, "")
    return known if len(known) == 43 and known.isascii() else secrets.token_urlsafe(32)


def check_csrf(request: Request, given: Any) -> str | None:
    """Return why a form was not sent from this page, or None if it was."""
    site = request.headers.get("sec-fetch-site")
    if site is not None and site not in {"same-origin", "none"}:
        return "The form was sent from another site; nothing was done."
    origin = request.headers.get("origin", "null")
    if origin != "null" and urlsplit(origin).netloc != request.headers.get("host"):
        return "The form was sent from another site; nothing was done."
    kept = request.cookies.get(CSRF_COOKIE, "")
    if not kept or not hmac.compare_digest(kept.encode(), str(given or "").encode()):
        return "The form is older than this browser's session; nothing was done. Go back, reload."
    return None


def cookie(request: Request, name: str, value: str, *, seconds: int | None = None) -> str:
    """Return the header's value that sets a cookie for this page alone."""
    parts = [f"{name}={value}", f"Path={request.scope.get('root_path') or '/'}"]
    parts += ["HttpOnly", "SameSite=Strict" if name == CSRF_COOKIE else "SameSite=Lax"]
    if seconds is not None:
        parts.append(f"Max-Age={seconds}")
    if request.url.scheme == "https":
        parts.append("Secure")
    return "; ".join(parts)


def is_page(headers: MutableHeaders) -> bool:
    """Tell whether an answer is a page, and no asset or data."""
    return headers.get("content-type", "").startswith("text/html")


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
