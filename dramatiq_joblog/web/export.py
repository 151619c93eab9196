"""``export()``: the dashboard as static files, with the current state of the log.

The dashboard is called in-process, link by link.  It is mounted under a random path, so that every
text with that prefix is one of its links, and not data of a job.
"""

from __future__ import annotations

import asyncio
import hashlib
import html
import re
import secrets
from collections import deque
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from starlette.applications import Starlette
from starlette.routing import Mount

from dramatiq_joblog.errors import ConfigurationError, DatabaseAwayError

from .app import frozen_page

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

    from dramatiq_joblog.joblog import JobLog

#: The default number of pages, nearest to the first page first.
DEFAULT_PAGES = 500
#: The page that replaces pages not exported: actions, and those beyond the limit.
MISSING = "not-here.html"
#: Paths that do not work in an export.
_ACTS = re.compile(r"/(?:complete|confirm|do|live|login|logout|zone)(?:[/?]|$)")
_OF_A_JOB = re.compile(r"/jobs/[^?]")
#: File types that keep their suffix.
_KINDS = {".css", ".js", ".json", ".svg"}
#: The maximum length of a file name, without the suffix that makes it unique.
_LONGEST = 80


@dataclass(frozen=True)
class Exported:
    """The result of an export."""

    #: The first page.
    index: Path
    #: The number of files, and the number of links to pages that were not exported.
    files: int
    missing: int


def export(
    joblog: JobLog[Any],
    folder: str | os.PathLike[str],
    *,
    pages: int = DEFAULT_PAGES,
    environment: str | None = None,
    time_zone: str = "UTC",
    title: str = "joblog",
) -> Exported:
    """Write the dashboard as static files, with the current state of the log.

    Open ``index.html`` in a browser, or serve the files under any path.  They have no actions and
    no search.  They show everything that the level ``"read-only"`` shows, including arguments.

    Parameters:
      joblog: The log.
      folder: The folder to create; if it exists, it must be empty.
      pages: Write at most this many pages, following links from the first.
      environment: A label next to the title, such as ``"production"``.
      time_zone: The time zone for display, such as ``"Europe/Berlin"``.
      title: The title of the dashboard.

    Raises:
      ConfigurationError: If the folder is not empty, or a value is invalid.
      DatabaseAwayError: If the database is or becomes unavailable.
    """
    if isinstance(pages, bool) or not isinstance(pages, int) or pages < 1:
        raise ConfigurationError(f"pages={pages!r} must be a whole number, at least 1")
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigurationError(f"{target} is not an empty folder: name one that is, or a new one")
    joblog.jobs.first()
    joblog.release()
    page = frozen_page(joblog, environment=environment, time_zone=time_zone, title=title)
    target.mkdir(parents=True, exist_ok=True)
    return asyncio.run(_Copy(page, target, pages).write())


class _Copy:
    """One export of the dashboard."""

    def __init__(self, page: Starlette, folder: Path, pages: int) -> None:
        self._root = f"/{secrets.token_hex(16)}"
        self._site = Starlette(routes=[Mount(self._root, page)])
        self._folder = folder
        self._pages = pages
        #: The names of files, by link.
        self._names: dict[str, str] = {}
        self._to_do: deque[str] = deque()
        self._missing: set[str] = set()
        self._link = re.compile(rf'(?P<what>[\w:-]+)="{self._root}(?P<to>[^"]*)"')

    async def write(self) -> Exported:
        self._name("/")
        while self._to_do:
            link = self._to_do.popleft()
            (self._folder / self._names[link]).write_bytes(await self._ask(link))
        (self._folder / MISSING).write_bytes(await self._ask(f"/{MISSING}"))
        index = self._folder / self._names["/"]
        return Exported(index, len(self._names) + 1, len(self._missing))

    async def _ask(self, link: str) -> bytes:
        """Return the content of a link, with its links replaced by file names."""
        status, kind, content = await _get(self._site, self._root, link)
        if status >= 500:
            # An export must not contain an error in place of a page.
            raise DatabaseAwayError(
                f"the page {link} could not be exported, because the log did not respond in time: "
                "find out what else the database is doing, and export again into a new folder"
            )
        if kind.startswith("text/html"):
            return self._link.sub(self._rewritten, content.decode()).encode()
        return content.replace(self._root.encode(), b"")

    def _rewritten(self, found: re.Match[str]) -> str:
        link, hash_, fragment = html.unescape(found["to"]).partition("#")
        if _OF_A_JOB.match(link):
            # The query only names the list that the job was opened from.
            link = link.partition("?")[0]
        # The target of a form depends on its values.
        name = MISSING if found["what"] == "action" else self._name(link or "/")
        return f'{found["what"]}="{html.escape(name + hash_ + fragment)}"'

    def _name(self, link: str) -> str:
        """Return the file name of a link, and queue the link if it is new."""
        if link not in self._names:
            is_asset = link.startswith("/static/")
            if _ACTS.match(link) or (not is_asset and len(self._names) >= self._pages):
                self._missing.add(link)
                return MISSING
            self._names[link] = name_of(link, self._names.values())
            self._to_do.append(link)
        return self._names[link]


def name_of(link: str, taken: Iterable[str] = ()) -> str:
    """Return the file name for a link, readable if possible.

    Example:
      >>> name_of("/"), name_of("/jobs/b3c1"), name_of("/metrics")
      ('index.html', 'jobs-b3c1.html', 'metrics.txt')

    Parameters:
      link: The link, with its query.
      taken: Names of other files; some file systems ignore case.
    """
    path, _, query = link.partition("?")
    whole = PurePosixPath(unquote(path).strip("/") or "index")
    kind = whole.suffix if whole.suffix in _KINDS else ""
    stem = re.sub(r"[^A-Za-z0-9_]+", "-", str(whole).removesuffix(kind)).strip("-")[:_LONGEST]
    kind = kind or (".txt" if path in {"/health", "/metrics"} else ".html")
    name = f"{stem or 'page'}{kind}"
    if query or name.lower() in {MISSING, *map(str.lower, taken)}:
        name = f"{stem or 'page'}-{hashlib.sha256(link.encode()).hexdigest()[:10]}{kind}"
    return name


async def _get(site: Starlette, root: str, link: str) -> tuple[int, str, bytes]:
    """Return the status, content type and body of an application's response."""
    path, _, query = link.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": root + unquote(path),
        "raw_path": (root + path).encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": [(b"host", b"localhost")],
        "client": ("127.0.0.1", 0),
        "server": ("localhost", 80),
    }
    status, kind, parts = 500, "", []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        nonlocal status, kind
        if message["type"] == "http.response.start":
            status = message["status"]
            headers = {name.decode().lower(): value.decode() for name, value in message["headers"]}
            kind = headers.get("content-type", "")
        else:
            parts.append(message.get("body", b""))

    await site(scope, receive, send)
    return status, kind, b"".join(parts)
