"""The web application: order a report, see how it comes on."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, RedirectResponse, Response
from starlette.middleware.sessions import SessionMiddleware

from dramatiq_joblog import DuplicateJob, Job
from dramatiq_joblog.web import dashboard, status

from . import logs
from .jobs import joblog, make_report
from .settings import settings

INDEX = Path(__file__).with_name("index.html")


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
    """Make the tables, which many replicas may do at once; and end in order."""
    logs.configure()
    await joblog.fetch(joblog.create_tables)
    yield
    await run_in_threadpool(joblog.close)


app = FastAPI(lifespan=lifespan)
app.add_middleware(SessionMiddleware, secret_key=settings.secret)


def current_user(request: Request) -> str:
    """Return who has signed in."""
    user = request.session.get("user")
    if not isinstance(user, str):
        raise HTTPException(401, "Sign in first.")
    return user


User = Annotated[str, Depends(current_user)]


def may_see(request: Request, job: Job) -> bool:
    """Return whether a job is that of who asks; a 401 of `current_user` passes through."""
    return job.user_id == current_user(request)


def may_administrate(request: Request) -> Response | tuple[str, str] | None:
    """Let administrators see the page; who has not signed in is sent to do so."""
    user = request.session.get("user")
    if user is None:
        return RedirectResponse("/", 303)
    return ("all", user) if user in settings.admins else None


app.mount("/status", status(joblog, authorize=may_see))
app.mount(
    "/jobs",
    dashboard(joblog, authorize=may_administrate, metrics_token=settings.metrics_token),
)


@app.get("/")
async def index() -> FileResponse:
    """Return the front end."""
    return FileResponse(INDEX)


@app.post("/login/{user}", status_code=204)
async def login(request: Request, user: str) -> None:
    """Sign in; an application of your own asks for more than a name."""
    request.session["user"] = user


@app.post("/reports", status_code=202)
async def order(user: User, pages: int = 40) -> dict[str, str]:
    """Order a report; 409 with its jid while one of this user is in progress."""
    try:
        # It asks the database whether there is one, so not in the event loop.
        message = await run_in_threadpool(make_report.send, user, pages)
    except DuplicateJob as e:
        raise HTTPException(409, {"jid": e.jid}) from None
    return {"jid": message.message_id}


@app.get("/reports")
async def reports(user: User) -> list[dict[str, object]]:
    """Return the last reports of who asks."""
    query = joblog.jobs.of_type("report").for_user(user).limit(20)
    return [
        {"jid": job.jid, "state": job.state, "created_at": job.created_at, "error": job.error_type}
        for job in await joblog.fetch(query)
    ]
