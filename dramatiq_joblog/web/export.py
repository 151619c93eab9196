"""``export()``: the page as static files, with the log as it is now, which open without a server.

The page itself is asked, link by link, and no server is needed for that.  It is mounted below a
path that nobody could guess, so that what begins with that path is one of its links and no text
of a job's.
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

#: Pages of an export, unless others are asked for; those that fewest clicks lead to come first.
DEFAULT_PAGES = 500
#: The page in place of those that are not in it: those that act, and those beyond that number.
MISSING = "not-here.html"
#: What a copy cannot do.
_ACTS = re.compile(r"/(?:complete|confirm|do|live|login|logout|zone)(?:[/?]|$)")
_OF_A_JOB = re.compile(r"/jobs/[^?]")
#: Kinds of files that are named as they are.
_KINDS = {".css", ".js", ".json", ".svg"}
#: Characters of a file's name, without what makes it one of its own.
_LONGEST = 80


@dataclass(frozen=True)
class Exported:
    """What an export wrote."""

    #: Where it begins.
    index: Path
    #: How many files there are, and how many links lead to a page that is not among them.
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
    """Write the page as static files, with the current state of the log.

    Open ``index.html`` in a browser, or serve the files under any path.  They have no actions and
    no search.  They show everything that the level ``"read-only"`` shows, including arguments.

    Parameters:
      joblog: The log.
      folder: The folder to create; if it exists, it must be empty.
      pages: Write at most this many pages, following links from the first.
      environment: A word beside the title, as ``"production"``.
      time_zone: The zone that times are shown in, as ``"Europe/Berlin"``.
      title: The name of the page.

    Raises:
      ConfigurationError: If the folder is not empty, or a value makes no sense.
      DatabaseAwayError: If the database is unavailable, or becomes so meanwhile.
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
    """One copy of the page."""

    def __init__(self, page: Starlette, folder: Path, pages: int) -> None:
        self._root = f"/{secrets.token_hex(16)}"
        self._site = Starlette(routes=[Mount(self._root, page)])
        self._folder = folder
        self._pages = pages
        #: The names of files, by their links.
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
        """Return what stands behind a link, with links to files."""
        status, kind, content = await _get(self._site, self._root, link)
        if status >= 500:
            # A copy that shows an error in place of a page is none.
            raise DatabaseAwayError(
                f"the page {link} could not be copied, as the log did not answer in time: look at "
                "what else the database does, and copy again into a new folder"
            )
        if kind.startswith("text/html"):
            return self._link.sub(self._rewritten, content.decode()).encode()
        return content.replace(self._root.encode(), b"")

    def _rewritten(self, found: re.Match[str]) -> str:
        link, hash_, fragment = html.unescape(found["to"]).partition("#")
        if _OF_A_JOB.match(link):
            # From whatever list one comes to it: it is the same job.
            link = link.partition("?")[0]
        # What a form asks for is not known before somebody has filled it in.
        name = MISSING if found["what"] == "action" else self._name(link or "/")
        return f'{found["what"]}="{html.escape(name + hash_ + fragment)}"'

    def _name(self, link: str) -> str:
        """Return the name of the file behind a link, which is asked for if that is new."""
        if link not in self._names:
            is_asset = link.startswith("/static/")
            if _ACTS.match(link) or (not is_asset and len(self._names) >= self._pages):
                self._missing.add(link)
                return MISSING
            self._names[link] = name_of(link, self._names.values())
            self._to_do.append(link)
        return self._names[link]


def name_of(link: str, taken: Iterable[str] = ()) -> str:
    """Return the name of a file for a link, readable where that can be.

    Example:
      >>> name_of("/"), name_of("/jobs/b3c1"), name_of("/metrics")
      ('index.html', 'jobs-b3c1.html', 'metrics.txt')

    Parameters:
      link: The link, with its query.
      taken: Names of other files; one that differs in its case alone is the same on some disks.
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
    """Return the status, the kind and the content of what an application answers."""
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
