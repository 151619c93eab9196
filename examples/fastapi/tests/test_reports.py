"""Tests with an async client; jobs run in memory, by the log's fixtures."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
from httpx2 import ASGITransport, AsyncClient

from dramatiq_joblog.testing import JobLogWorker
from reports import logs
from reports.app import app


@asynccontextmanager
async def client_of(user: str | None) -> AsyncGenerator[AsyncClient]:
    """Yield a client, who has signed in unless it is nobody."""
    transport = ASGITransport(app=app)
    client = AsyncClient(transport=transport, base_url="http://reports")
    try:
        if user is not None:
            await client.post(f"/login/{user}")
        yield client
    finally:
        await client.aclose()


def test_one_at_a_time(joblog_worker: JobLogWorker) -> None:
    """A second report of a user is refused with the jid of the first, until that has ended."""

    async def order() -> tuple[list[int], str]:
        async with client_of("ada") as ada, client_of("bob") as bob:
            answers = await asyncio.gather(
                *(ada.post("/reports", params={"pages": 2}) for _ in range(5))
            )
            [taken] = [a.json()["jid"] for a in answers if a.status_code == 202]
            assert {taken} == {a.json()["detail"]["jid"] for a in answers if a.status_code == 409}
            assert (await bob.post("/reports", params={"pages": 1})).status_code == 202
            return sorted(a.status_code for a in answers), taken

    codes, jid = asyncio.run(order())

    assert codes == [202, 409, 409, 409, 409]
    assert [job.state for job in joblog_worker.run()] == ["finished", "finished"]

    async def look() -> None:
        async with client_of("ada") as ada:
            status = (await ada.get(f"/status/{jid}")).json()
            assert status["final"]
            assert status["progress"] == {"done": 2, "total": 2, "text": "writing"}
            assert [job["jid"] for job in (await ada.get("/reports")).json()] == [jid]
            assert (await ada.post("/reports", params={"pages": 1})).status_code == 202

    asyncio.run(look())


@pytest.mark.parametrize(("user", "code"), [(None, 401), ("bob", 403), ("ada", 200)])
def test_who_may_see_a_report(joblog_worker: JobLogWorker, user: str | None, code: int) -> None:
    """A report's status is for who ordered it."""

    async def look() -> int:
        async with client_of("ada") as ada, client_of(user) as other:
            jid = (await ada.post("/reports", params={"pages": 1})).json()["jid"]
            return (await other.get(f"/status/{jid}")).status_code

    assert asyncio.run(look()) == code


@pytest.mark.parametrize(("user", "code"), [(None, 303), ("bob", 403), ("grace", 200)])
def test_who_may_see_the_page(joblog_worker: JobLogWorker, user: str | None, code: int) -> None:
    """The page of all jobs is for administrators; strangers are sent to sign in."""

    async def look() -> int:
        async with client_of(user) as client:
            return (await client.get("/jobs/")).status_code

    assert asyncio.run(look()) == code


def test_logs(joblog_worker: JobLogWorker, capsys: pytest.CaptureFixture[str]) -> None:
    """Each line of a job is one object of JSON, with the job's jid."""

    async def order() -> str:
        async with client_of("ada") as ada:
            answer = await ada.post("/reports", params={"pages": 2})
            return str(answer.json()["jid"])

    before = logging.root.handlers[:]
    jid = asyncio.run(order())
    try:
        logs.configure()
        joblog_worker.run()
    finally:
        logging.root.handlers[:] = before

    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    pages = [line for line in lines if line["logger"] == "reports.jobs"]
    assert [(line["text"], line["jid"]) for line in pages] == [
        ("page 1 for ada", jid),
        ("page 2 for ada", jid),
    ]
    [outcome] = [line for line in lines if line["logger"] == "dramatiq_joblog.outcome"]
    assert (outcome["jid"], outcome["state"]) == (jid, "finished")
