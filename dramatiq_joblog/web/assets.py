"""The static files of the dashboard: read once, versioned, cached by browsers for a year."""

from __future__ import annotations

import hashlib
import importlib.resources
from functools import cache
from typing import TYPE_CHECKING

from starlette.responses import PlainTextResponse, Response

from .sending import packed

if TYPE_CHECKING:
    from starlette.requests import Request

_FOLDER = importlib.resources.files(__package__) / "static"
_TYPES = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


@cache
def _files() -> dict[str, bytes]:
    # An upgrade of the package replaces the files of a running process.
    return {path.name: path.read_bytes() for path in _FOLDER.iterdir() if path.is_file()}


@cache
def version() -> str:
    """Return the version of these files; it changes when one of them does."""
    digest = hashlib.sha256()
    for _, data in sorted(_files().items()):
        digest.update(data)
    return digest.hexdigest()[:12]


def asset(request: Request) -> Response:
    """Respond with a file; files are public, because the sign-in page needs them."""
    name = request.path_params["path"]
    if name not in _files():
        return PlainTextResponse("There is no such file.", 404)
    current = request.path_params["version"] == version()
    keep = "public, max-age=31536000, immutable" if current else "no-cache"
    return packed(
        request,
        Response(
            _files()[name],
            media_type=_TYPES[name.rpartition(".")[2]],
            headers={"cache-control": keep},
        ),
    )
