"""Mounts under a root path that a proxy strips, or keeps."""

from __future__ import annotations

import re

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from dramatiq_joblog import JobLog
from dramatiq_joblog.web import dashboard, status

KEY = "a key of the tests, long enough"


@pytest.fixture
def log(sqlite_database):
    """Return a log without jobs."""
    log = JobLog(sqlite_database)
    yield log
    log.close()


def client(app, root):
    """Return a client of a server with a root path, without redirects."""
    return TestClient(app, base_url="http://localhost", root_path=root, follow_redirects=False)


@pytest.mark.parametrize("arrives", ["/ops", "/api/ops"], ids=["cut off", "left"])
@pytest.mark.parametrize("depth", [1, 2])
def test_a_mount_under_a_root_path(log, arrives, depth):
    """Each link, cookie and redirect has both prefixes once, and its target is found."""
    app = Starlette(routes=[Mount("/ops", dashboard(log, key=KEY))])
    if depth == 2:
        app = Starlette(
            routes=[Mount("/ops", Starlette(routes=[Mount("/", dashboard(log, key=KEY))]))]
        )
    asking = client(app, "/api")

    first = asking.get(f"{arrives}/jobs", params={"key": KEY})
    assert (303, "/api/ops/jobs") == (first.status_code, first.headers["location"])
    assert "path=/api/ops;" in first.headers["set-cookie"].lower()
    cookies = {c.name: c.value for c in asking.cookies.jar}
    header = {"cookie": "; ".join(f"{name}={value}" for name, value in cookies.items())}
    page = asking.get(f"{arrives}/jobs", headers=header)
    assert page.status_code == 200
    links = set(re.findall(r'href="(/[^"]*)"', page.text))
    assert all(re.match("/api/ops(/|$)", link) for link in links), links
    assert not any("/ops/ops" in link for link in links)
    assert asking.get(f"{arrives}/live").text == "ok"
    assert asking.get(f"{arrives}/locks.json", headers=header).status_code == 200
    assert client(app, "/api").get(f"{arrives}/locks.json").status_code == 401


@pytest.mark.parametrize(
    "path", ["/opsx/jobs.json", "/api/jobs.json", "/jobs.json", "/api/opsjobs"]
)
def test_other_paths_are_not_the_pages(log, path):
    """Paths outside the mount belong to the application, and are not found there."""
    app = Starlette(routes=[Mount("/ops", dashboard(log, authorize=lambda request: "all"))])
    assert client(app, "/api").get(path).status_code == 404


@pytest.mark.parametrize("arrives", ["/state", "/api/state"], ids=["cut off", "left"])
def test_the_state_of_a_job_under_a_root_path(log, arrives):
    """The application that shows one job is found there as well."""
    log.Job.create(
        jid="one", actor="work", queue="default", state="finished", attempt=1, created_at=1,
        updated_at=1,
    )  # fmt: skip
    app = Starlette(routes=[Mount("/state", status(log))])
    assert client(app, "/api").get(f"{arrives}/one").json()["state"] == "finished"
