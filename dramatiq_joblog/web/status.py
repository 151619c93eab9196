"""``status()``: one job's progress, for an application's own front end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from dramatiq_joblog.errors import DatabaseAwayError, JobLogError, JobNotFound, WaitTimeout
from dramatiq_joblog.joblog import given_log
from dramatiq_joblog.payload.functions import check_function
from dramatiq_joblog.states import FINAL

from .access import answer_of, decision_of
from .root_paths import WholePath

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from starlette.requests import Request

    from dramatiq_joblog.joblog import JobLog

#: Milliseconds that the database may take for a response.
ANSWER_WITHIN = 3_000
#: Milliseconds to wait for the row of a job that another process has just sent.
LATE_ROW = 500
#: Seconds between two keep-alive comments of an idle stream, so that no proxy closes it.
ALIVE_EVERY = 15.0
#: Seconds that a stream lasts; the browser then reconnects, and is authorized again.
LASTS = 300.0

_HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
#: nginx would buffer the events.
_OF_STREAMS = _HEADERS | {"x-accel-buffering": "no"}


def status(
    joblog: JobLog[Any], authorize: Callable[[Request, Any], Any] | None = None
) -> Starlette:
    """Return an ASGI application that shows one job's progress, for your own front end.

    ``GET /{jid}`` returns JSON: ``jid``, ``state``, whether that is ``final``, and
    ``progress``, as ``{"done": 12, "total": 40, "text": "reading"}`` or null.
    ``GET /{jid}/events`` returns the same as server-sent events, one for each change; the
    last one is final.  The response is 404 for an unknown jid, and 503 if the database is
    unavailable.

    Parameters:
      joblog: The log.
      authorize: A callable that receives each request and its :class:`Job`, and returns whether
        the request may see that job; or a Response to send instead.  It may raise Starlette's or
        FastAPI's ``HTTPException``.  An async callable is awaited; any other is called in a
        thread.  Without it, anyone who knows a jid can see that job's progress.

    Raises:
      ConfigurationError: If *joblog* is not a log, or *authorize* cannot be called with these.
    """
    given_log(joblog)
    if authorize is not None:
        check_function("authorize=", authorize, "a request", "a job")
    return Starlette(
        routes=[
            Route("/{jid:path}/events", _endpoint(joblog, authorize, _events), methods=["GET"]),
            Route("/{jid:path}", _endpoint(joblog, authorize, _state), methods=["GET"]),
        ],
        middleware=[Middleware(WholePath)],
    )


def _endpoint(
    joblog: JobLog[Any],
    authorize: Callable[[Request, Any], Any] | None,
    answer: Callable[[JobLog[Any], Request, Any], Response],
) -> Callable[[Request], Any]:
    async def endpoint(request: Request) -> Response:
        try:
            job = await _find(joblog, request.path_params["jid"])
        except JobNotFound:
            return _refusal(404, "There is no such job.")
        except DatabaseAwayError:
            return _refusal(503, "The job log is unavailable now.", {"retry-after": "5"})
        if authorize is not None:
            try:
                decision = await decision_of(authorize, request, job)
            except HTTPException as e:
                return answer_of(e)
            if isinstance(decision, Response):
                return decision
            if not decision:
                return _refusal(403, "You may not see this job.")
        return answer(joblog, request, job)

    return endpoint


async def _find(joblog: JobLog[Any], jid: str) -> Any:
    """Return a job, waiting briefly if its row is not written yet.

    Raises:
      JobNotFound: If there is no such job.
      DatabaseAwayError: If the database is unavailable.
    """
    with contextlib.suppress(JobNotFound):
        return await joblog.get_async(jid, timeout=ANSWER_WITHIN)
    with contextlib.suppress(WaitTimeout):
        async with contextlib.aclosing(joblog.follow(jid, timeout=LATE_ROW).__aiter__()) as seen:
            async for job in seen:
                return job
    raise JobNotFound(jid)


def _state(_: JobLog[Any], __: Request, job: Any) -> Response:
    return JSONResponse(_facts(job), headers=_HEADERS)


def _events(joblog: JobLog[Any], request: Request, job: Any) -> Response:
    if job.state in FINAL and request.headers.get("last-event-id") == _name(job):
        # Browsers reconnect when a stream ends; 204 makes them stop.
        return Response(status_code=204, headers=_HEADERS)
    if request.method == "HEAD":
        return Response(media_type="text/event-stream", headers=_OF_STREAMS)
    stream = _stream(joblog, job.jid)
    return StreamingResponse(stream, media_type="text/event-stream", headers=_OF_STREAMS)


async def _stream(joblog: JobLog[Any], jid: str) -> AsyncIterator[str]:
    """Yield an event for each change of a job, and keep-alive comments."""
    ends_at = time.monotonic() + LASTS
    changes = joblog.follow(jid).__aiter__()
    change: asyncio.Future[Any] = asyncio.ensure_future(anext(changes, None))
    try:
        while time.monotonic() < ends_at:
            within = min(ALIVE_EVERY, max(0.0, ends_at - time.monotonic()))
            await asyncio.wait({change}, timeout=within)
            if not change.done():
                yield ": alive\n\n"
                continue
            job = change.result()
            if job is None:
                return
            yield f"id: {_name(job)}\ndata: {json.dumps(_facts(job))}\n\n"
            change = asyncio.ensure_future(anext(changes, None))
    except JobLogError:
        # It was pruned, or the log was closed; a browser that reconnects gets the reason.
        return
    finally:
        change.cancel()
        with contextlib.suppress(asyncio.CancelledError, JobLogError):
            await change
        await changes.aclose()


def _facts(job: Any) -> dict[str, Any]:
    return {
        "jid": job.jid,
        "state": str(job.state),
        "final": job.state in FINAL,
        "progress": job.progress,
    }


def _name(job: Any) -> str:
    """Return the id of an event, which a reconnecting browser sends back."""
    return f"{job.state}-{job.attempt}"


def _refusal(code: int, text: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"detail": text}, code, _HEADERS | (headers or {}))
