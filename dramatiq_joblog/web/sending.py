"""Sending a response: compressed, or empty if nothing has changed."""

from __future__ import annotations

import hashlib
import re
import secrets
import struct
import time
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

#: The minimum size of a compressed response in bytes, and the level of compression.
_LEAST, _LEVEL = 1_000, 5
#: The maximum random padding of a compressed response in bytes, so that its length does not reveal
#: a secret next to attacker-chosen text (BREACH).
_PADDING = 100
#: What the browser updates by itself: the time, ages, and remaining leases.
_PASSING = (
    (re.compile(r'data-now="\d+"'), ""),
    (re.compile(r"(<time [^>]*data-at=[^>]*>)[^<]*"), r"\1"),
    (re.compile(r'(data-since="\d+"[^>]*>)[^<]*<span class="u">[^<]*</span>'), r"\1"),
    (
        re.compile(
            r'(data-until="\d+".*?<rect class="f-track".*?<rect )[^>]*(>.*?<span[^>]*>)[^<]*'
        ),
        r"\1\2",
    ),
)
_PLACE = 'data-etag=""'


def tagged(html: str) -> tuple[str, str]:
    """Return a page with an ETag of its content in it, and the tag.

    Pages that differ only by the passing of time have the same tag.
    """
    plain = html
    for pattern, kept in _PASSING:
        plain = pattern.sub(kept, plain)
    tag = hashlib.sha256(plain.encode(errors="replace")).hexdigest()[:20]
    return html.replace(_PLACE, f'data-etag="{tag}"', 1), f'W/"{tag}"'


def is_known(request: Request, tag: str) -> bool:
    """Return whether the client already has the content of a tag."""
    given = request.headers.get("if-none-match", "")
    return tag.removeprefix("W/") in {each.strip().removeprefix("W/") for each in given.split(",")}


def packed(request: Request, response: Response) -> Response:
    """Compress a response, if the client supports that and it is large enough."""
    body = bytes(response.body)
    if "gzip" not in request.headers.get("accept-encoding", "").lower() or len(body) < _LEAST:
        return response
    if "content-encoding" in response.headers:
        return response
    response.body = compressed(body)
    response.headers["content-length"] = str(len(response.body))
    response.headers["content-encoding"] = "gzip"
    vary = response.headers.get("vary")
    response.headers["vary"] = f"{vary}, accept-encoding" if vary else "accept-encoding"
    return response


def compressed(body: bytes) -> bytes:
    """Return gzip-compressed bytes, with a file name of random length in the header."""
    name = secrets.token_hex(_PADDING)[: secrets.randbelow(_PADDING)].encode() + b"\0"
    head = b"\x1f\x8b\x08\x08" + struct.pack("<L", int(time.time())) + b"\x02\xff" + name
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    data = packer.compress(body) + packer.flush()
    return head + data + struct.pack("<LL", zlib.crc32(body), len(body) & 0xFFFFFFFF)
