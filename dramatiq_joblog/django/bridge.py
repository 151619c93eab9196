"""Answers a Django request with an ASGI application, whatever serves Django.

An event loop on a separate thread runs the application.  WSGI has no loop, and a new loop for each
request would break objects that the application binds to its loop.
"""

from __future__ import annotations

import asyncio
import os
import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from django.http import HttpResponse

if TYPE_CHECKING:
    from django.http import HttpRequest


class Bridge:
    """An ASGI application for Django's views, in each process.

    Parameters:
      application: The application; its responses are complete, not streams.
    """

    # Any: the types of ASGI differ between frameworks.
    def __init__(self, application: Any) -> None:
        self._application = application
        self._guard = threading.Lock()
        self._loop: tuple[int, asyncio.AbstractEventLoop] | None = None

    def answer(self, request: HttpRequest, path: str, **facts: Any) -> HttpResponse:
        """Return the application's response.

        Parameters:
          request: Django's request.
          path: The path below the address at which the application is mounted.
          facts: Additional entries of the application's scope.
        """
        body = request.body
        scope = _scope_of(request, path) | facts
        loop = self._of_this_process()
        future = asyncio.run_coroutine_threadsafe(self._run(scope, body), loop)
        return future.result()

    async def _run(self, scope: dict[str, Any], body: bytes) -> HttpResponse:
        response = HttpResponse()
        received = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            return received.pop() if received else {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                response.status_code = message["status"]
                _copy_headers(response, message.get("headers", []))
            elif message["type"] == "http.response.body":
                response.write(message.get("body", b""))

        await self._application(scope, receive, send)
        return response

    def _of_this_process(self) -> asyncio.AbstractEventLoop:
        """Return this process's loop; after a fork, that of the parent does not run here."""
        with self._guard:
            if self._loop is None or self._loop[0] != os.getpid():
                loop = asyncio.new_event_loop()
                threading.Thread(
                    target=loop.run_forever, name="dramatiq_joblog page's loop", daemon=True
                ).start()
                self._loop = os.getpid(), loop
            return self._loop[1]


def _scope_of(request: HttpRequest, path: str) -> dict[str, Any]:
    root = request.path.removesuffix(path).rstrip("/")
    address = request.META.get("REMOTE_ADDR")
    # Django has joined repeated headers.
    headers = [
        (name.lower().encode("latin-1"), value.encode("latin-1", "replace"))
        for name, value in request.headers.items()
    ]
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": request.scheme,
        "path": request.path,
        "raw_path": quote(request.path).encode(),
        "query_string": request.META.get("QUERY_STRING", "").encode("latin-1", "replace"),
        "root_path": root,
        "headers": headers,
        "client": (address, 0) if address else None,
        "server": (request.META.get("SERVER_NAME", ""), int(request.META.get("SERVER_PORT") or 0)),
        "state": {},
    }


def _copy_headers(response: HttpResponse, headers: Any) -> None:
    del response["Content-Type"]
    for raw_name, raw_value in headers:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        if name.lower() == "set-cookie":
            # There may be several cookies, which Django stores by name.
            response.cookies.load(value)
        else:
            response[name] = value
