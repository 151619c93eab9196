"""The examples: their own tests, and the documented deployment, really started."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import servers

from dramatiq_joblog import JobLog

EXAMPLES = Path(__file__).parents[2] / "examples"
FASTAPI, DEPLOY = EXAMPLES / "fastapi", EXAMPLES / "deploy"
UNITS = sorted((DEPLOY / "systemd").iterdir())
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


@pytest.mark.full
def test_the_tests_of_the_async_application(tmp_path, run_python):
    """Its tests with an async client pass, with warnings as errors."""
    copy = shutil.copytree(FASTAPI, tmp_path / "fastapi")
    (copy / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    done = run_python(
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"),
        folder=copy,
        environment=os.environ | {"PYTHONPATH": str(copy)},
    )
    assert 0 == done.returncode, done.stdout + done.stderr
    assert "skipped" not in done.stdout


def test_its_front_end_is_short():
    """The page with the progress bar has thirty lines at most."""
    assert len((FASTAPI / "reports" / "index.html").read_text().strip().splitlines()) <= 30


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_units(unit, tmp_path):
    """The units have no errors, according to systemd where it is installed."""
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("no systemd-analyze")
    for path in UNITS:
        text = re.sub(r"(?<=ExecStart=)/\S+", sys.executable, path.read_text())
        (tmp_path / path.name).write_text(text)
    name = unit.name.replace("@", "@8001")
    done = subprocess.run(
        [program, "verify", "--man=no", tmp_path / name],
        env=os.environ | {"SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
        capture_output=True,
        text=True,
        check=False,
    )
    ours = [line for line in done.stderr.splitlines() if "reports" in line]
    assert [] == ours


def test_the_compose_file():
    """Its services, volumes and conditions match, and its commands exist."""
    yaml = pytest.importorskip("yaml")
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    services = compose["services"]

    assert {"postgres", "redis", "migrate", "worker", "web", "nginx"} == {*services}
    for service in services.values():
        for other, condition in service.get("depends_on", {}).items():
            healthy = condition["condition"] == "service_healthy"
            assert not healthy or "healthcheck" in services[other]
            assert healthy or services[other]["restart"] == "no"
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert source in compose["volumes"] or (DEPLOY / source).exists()
        if build := service.get("build"):
            context = DEPLOY / build["context"]
            assert DEPLOY / "Dockerfile" == (context / build["dockerfile"]).resolve()
    known = set(re.findall(r'_from\("(\w+)"', (FASTAPI / "reports" / "settings.py").read_text()))
    for environment in (services["web"]["environment"], _variables()):
        asked = {n.removeprefix("REPORTS_") for n in environment if n.startswith("REPORTS_")}
        assert asked <= known


def _variables():
    lines = (DEPLOY / "reports.env").read_text().split()
    return dict(line.partition("=")[::2] for line in lines)


def test_the_image():
    """The files that the Dockerfile copies exist, and it does not run as root."""
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", "")
    for source in re.findall(r"^COPY (\S+) ", text, re.MULTILINE):
        assert (EXAMPLES / source).exists()
    assert re.search(r"^USER app$", text, re.MULTILINE)


@pytest.fixture
def started(tmp_path):
    """Return a function that starts a program, which ends with the test."""
    with contextlib.ExitStack() as stack:

        def start(*command, name, **variables):
            path = tmp_path / f"{name}.log"
            log = stack.enter_context(path.open("wb"))
            process = servers.launch(
                command,
                on_parent_death=signal.SIGTERM,
                cwd=tmp_path,
                env=os.environ | variables,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            stack.callback(process.wait, timeout=30)
            stack.callback(process.terminate)
            return path

        yield start


def proxy_in_front_of(ports, listen, folder):
    """Return the file of nginx.conf with the addresses of this test."""
    text = (DEPLOY / "nginx.conf").read_text()
    upstream = "\n".join(f"server 127.0.0.1:{port};" for port in ports)
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    for before, after in (
        ("server web:8000;", upstream),
        ("listen 80;", f"listen 127.0.0.1:{listen};"),
        ("http {", f"http {{\naccess_log {folder}/access.log;\n{temporary}"),
    ):
        assert before in text
        text = text.replace(before, after)
    path = folder / "nginx.conf"
    path.write_text(text)
    return path


@pytest.mark.full
@pytest.mark.process
@pytest.mark.skipif(NGINX is None, reason="no nginx: apt install nginx-light")
def test_the_deployment(tmp_path, postgres_url, redis_url, started, eventually):
    """Two replicas behind a real nginx, real workers, PostgreSQL and Redis: as it is deployed."""
    import httpx2 as httpx
    from pages import chromium
    from playwright.sync_api import expect

    variables = {
        "PYTHONPATH": str(FASTAPI),
        "REPORTS_DATABASE": postgres_url,
        "REPORTS_REDIS": redis_url,
        "REPORTS_SECRET": "only for this test",
        "REPORTS_METRICS_TOKEN": "only-for-this-test",
    }
    python = (sys.executable, "-m")
    migrate = [*python, "dramatiq_joblog", "--app", "reports.jobs:joblog", "migrate"]
    subprocess.run(migrate, env=os.environ | variables, check=True, capture_output=True)
    ports, listen = (servers.free_port(), servers.free_port()), servers.free_port()
    here = f"http://127.0.0.1:{listen}"
    for port in ports:
        web = (*python, "uvicorn", "reports.app:app", "--port", str(port))
        started(*web, "--timeout-graceful-shutdown", "1", name=f"web-{port}", **variables)
    worker = (*python, "dramatiq", "--skip-logging", "--processes", "1", "reports.worker")
    log = started(*worker, name="worker", **variables)
    conf = proxy_in_front_of(ports, listen, tmp_path)
    options = f"daemon off; pid {tmp_path}/nginx.pid; error_log stderr;"
    check = [NGINX, "-t", "-p", tmp_path, "-c", conf, "-g", options]
    subprocess.run(check, check=True, capture_output=True)
    started(NGINX, "-p", str(tmp_path), "-c", str(conf), "-g", options, name="nginx")

    def is_up():
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{here}/jobs/live").status_code == 200
        return False

    eventually(is_up, timeout=60)
    # Each request goes to the other replica, and the session is known to both.
    with chromium() as browser:
        page = browser.new_page()
        page.goto(here)
        page.evaluate("fetch('/login/grace', {method: 'POST'})")
        eventually(page.context.cookies, timeout=20)
        page.get_by_role("button").click()
        says = page.get_by_role("status")
        expect(says).to_have_text("started: writing", timeout=30_000)
        assert 409 == page.evaluate("fetch('/reports', {method: 'POST'}).then(a => a.status)")
        expect(says).to_have_text("finished: writing", timeout=30_000)
        expect(page.get_by_role("progressbar")).to_have_js_property("value", 1)
        page.goto(f"{here}/jobs/")
        expect(page.get_by_role("link", name="report").first).to_be_visible()
    # The page's own door: nobody but who has signed in, through the proxy as well.
    assert 303 == httpx.get(f"{here}/jobs/").status_code
    assert 401 == httpx.get(f"{here}/reports").status_code
    token = {"Authorization": "Bearer only-for-this-test"}
    assert "joblog_jobs" in httpx.get(f"{here}/jobs/metrics", headers=token).text
    assert '"jid"' in log.read_text()
    joblog = JobLog(postgres_url)
    assert ["finished"] == [job.state for job in joblog.jobs]
    joblog.close()
