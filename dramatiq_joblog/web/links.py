"""Links relative to the mount point, and never to another site."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from dramatiq_joblog.schema.query import word

if TYPE_CHECKING:
    from starlette.requests import Request

_PATHS = {
    "actions": "/actions",
    "alerts": "/alerts",
    "compare": "/compare",
    "complete": "/complete",
    "confirm": "/confirm/{what}",
    "dead": "/dead",
    "do": "/do/{what}",
    "health": "/health",
    "job": "/jobs/{jid}",
    "jobs": "/jobs",
    "locks": "/locks",
    "login": "/login",
    "logout": "/logout",
    "metrics": "/metrics",
    "overview": "/",
    "queue": "/queues/{name}",
    "queues": "/queues",
    "static": "/static/{version}/{path}",
    "type": "/types/{name}",
    "types": "/types",
    "user": "/users/{user}",
    "workers": "/workers",
    "zone": "/zone",
}


class Links:
    """Makes the links of one response.

    Parameters:
      request: The request.
      version: The version of the assets.
    """

    def __init__(self, request: Request, version: str) -> None:
        root: str = request.scope.get("root_path", "").rstrip("/")
        #: The URL prefix of every path, without a trailing slash.
        self.root = quote(root)
        self._version = version
        path: str = request.scope["path"]
        #: The path of this page, relative to the mount point.
        self.path = path.removeprefix(root) or "/"
        self._query = dict(request.query_params)

    def __call__(self, name: str, /, **values: Any) -> str:
        """Return the link to a page; values that are not in its path become the query."""
        path = _PATHS[name]
        query = []
        for key, value in {"version": self._version, **values}.items():
            place = f"{{{key}}}"
            if place in path:
                path = path.replace(place, quote(str(value), safe="/" if key == "path" else ""))
            elif key != "version" and value is not None and value != "":
                query.append((key, value))
        return self.root + path + ("?" + urlencode(query) if query else "")

    def to_type(self, name: str, **values: Any) -> str:
        """Return the link to the page of a job type, or of an actor without a type."""
        return self._of("type", "name", name) or self("jobs", q=word("type", name), **values)

    def to_user(self, user: Any, **values: Any) -> str:
        """Return the link to the page of a user."""
        return self._of("user", "user", str(user)) or self("jobs", q=word("user", user), **values)

    def to_queue(self, name: str) -> str:
        """Return the link to the page of a queue."""
        return self._of("queue", "name", name) or self("jobs", q=word("queue", name))

    def _of(self, page: str, place: str, text: str) -> str | None:
        # Browsers resolve these as relative paths, even if they are escaped.
        return None if text in {"", ".", ".."} else self(page, **{place: text})

    def here(self, **changes: Any) -> str:
        """Return the link to this page with a changed query; None removes a value."""
        query = {k: v for k, v in (self._query | changes).items() if v not in {None, ""}}
        for own in ("done", "key", "n", "not", "rest", "then", "theme", "watch"):
            query.pop(own, None)
        path = self.root + quote(self.path)
        if path.startswith("//"):
            # Browsers treat a leading // as another host.
            path = "/" + path.lstrip("/")
        return path + ("?" + urlencode(query) if query else "")

    @property
    def back(self) -> str:
        """The link back to this page."""
        return self.here()

    def local(self, target: str) -> str:
        """Return *target* if it is a page of this dashboard, else the first page."""
        begins = target.startswith(self.root + "/")
        if not begins or target.startswith("//") or "\\" in target or not target.isprintable():
            return self("overview")
        return target
