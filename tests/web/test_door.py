"""Access: by a key, by a name and a password, by a token; and what others learn."""

from __future__ import annotations

import contextlib
import logging
import shutil
import subprocess
import sys
import threading
import time
from urllib.parse import quote

import httpx2 as httpx
import pytest
import servers
from pages import chromium
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from dramatiq_joblog import ConfigurationError, JobLog
from dramatiq_joblog.web import dashboard
from dramatiq_joblog.web import door as doors
from dramatiq_joblog.web.access import MAX_BODY

KEY = "a key of the tests, long enough"
TOKEN = "a token of the tests, long enough"
ROUTES = ("/", "/jobs", "/jobs.json", "/jobs/x", "/dead", "/locks", "/locks.json", "/workers")
ROUTES += ("/actions", "/complete", "/confirm/requeue", "/metrics", "/health", "/nope")


@pytest.fixture
def log(sqlite_database):
    """Return a log without jobs."""
    log = JobLog(sqlite_database)
    yield log
    log.close()


def client(app, *, host="127.0.0.1", base_url="http://localhost", **kwargs):
    """Return a client with the address *host*."""
    return TestClient(app, base_url=base_url, client=(host, 50_000), **kwargs)


def csrf(asking, path="/login"):
    """Return the CSRF token in the forms of a page."""
    asking.get(path)
    return next(c.value for c in asking.cookies.jar if c.name == "joblog_csrf")


# A key


@pytest.mark.few(3)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-forwarded-for": "127.0.0.1"},
        {"forwarded": "for=127.0.0.1"},
        {"x-real-ip": "127.0.0.1", "via": "1.1 proxy"},
        {"host": "joblog.example"},
        {"origin": "http://localhost"},
        {"authorization": "Bearer nonsense"},
        {"cookie": "joblog_session=1; joblog_session_00000000=x.y.z"},
    ],
)
def test_being_on_this_machine_is_no_leave(log, headers):
    """Without the key there is no access, not even from this machine, whatever the headers."""
    asking = client(dashboard(log), follow_redirects=False)

    for path in ROUTES:
        answer = asking.get(path, headers=headers)
        assert answer.status_code in {303, 401, 403}, path
        assert "database" not in answer.text


def test_a_key_opens_once_and_goes_on_as_a_cookie(log):
    """The key is removed from the URL at once; afterwards a cookie opens every page."""
    asking = client(dashboard(log, key=KEY), follow_redirects=False)

    first = asking.get("/jobs", params={"key": KEY, "q": "state:dead"})
    assert first.status_code == 303
    assert first.headers["location"] == "/jobs?q=state%3Adead"
    cookie = first.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert KEY not in cookie
    assert asking.get(first.headers["location"]).status_code == 200
    assert asking.get("/jobs.json").status_code == 200


def test_a_key_may_be_typed_or_sent_as_a_token(log):
    """The sign-in page asks for the key, and programs send it as a bearer token."""
    asking = client(dashboard(log, key=KEY))

    assert asking.get("/jobs.json", headers={"authorization": f"Bearer {KEY}"}).status_code == 200
    form = {"csrf": csrf(asking), "next": "/locks"}
    assert asking.post("/login", data=form | {"password": "wrong"}).status_code == 403
    assert asking.post("/login", data=form | {"password": KEY}).url.path == "/locks"


def test_a_key_is_made_and_said_in_the_log(log, caplog):
    """A dashboard without authorize=, login= and key= creates a key, and logs it as a warning."""
    with caplog.at_level(logging.WARNING):
        app = Starlette(routes=[Mount("/joblog", dashboard(log))])
    (said,) = [record.args[0] for record in caplog.records if "?key=" in record.getMessage()]

    assert len(said) >= 32
    with client(app) as asking:
        assert asking.get("/joblog/", params={"key": said}).status_code == 200
        assert asking.get("/joblog/jobs").status_code == 200
    assert client(dashboard(log)).get("/", params={"key": said}).url.path == "/login"


def test_two_pages_of_one_host_keep_their_sessions(log):
    """Cookies are shared by all ports of a host: dashboards do not end each other's sessions."""
    one, two = dashboard(log, key=KEY), dashboard(log, key=KEY[::-1])
    asking = client(one)
    asking.get("/", params={"key": KEY})
    other = client(two, cookies=asking.cookies)
    other.get("/", params={"key": KEY[::-1]})

    assert client(one, cookies=other.cookies).get("/jobs.json").status_code == 200


def test_processes_that_know_the_key_know_each_others_sessions(log):
    """A session begun in one process is valid in another."""
    asking = client(dashboard(log, key=KEY))
    asking.get("/", params={"key": KEY})

    assert client(dashboard(log, key=KEY), cookies=asking.cookies).get("/jobs.json").is_success


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"key": KEY, "login": ("ada", "engine")}, "key= and login= are both given"),
        ({"key": "short"}, "key= must be a text of at least"),
        ({"metrics_token": "short"}, "metrics_token= must be a text of at least"),
        ({"login": ("ada", "")}, "neither of them empty"),
    ],
)
def test_a_door_that_makes_no_sense_is_refused(log, settings, text):
    """Invalid settings are refused when the dashboard is created."""
    with pytest.raises(ConfigurationError, match=text):
        dashboard(log, **settings)


# Signing in and out


def test_login_asks_once(log):
    """With a login, a page redirects to the sign-in and back, and JSON is refused with 401."""
    asking = client(dashboard(log, login=("ada", "engine")), host="192.0.2.7")

    assert asking.get("/jobs.json").status_code == 401
    first = asking.get("/jobs?q=state%3Adead")
    assert first.url.path == "/login"
    token = csrf(asking, "/login")
    form = {"name": "ada", "next": "/jobs?q=state%3Adead", "csrf": token}
    wrong = asking.post("/login", data=form | {"password": "wrong"})
    assert wrong.status_code == 403
    right = asking.post("/login", data=form | {"password": "engine"})
    assert (right.url.path, right.status_code) == ("/jobs", 200)
    assert ">ada</span>" in right.text
    assert asking.post("/logout", data={"csrf": token}).url.path == "/login"
    assert asking.get("/jobs.json").status_code == 401


@pytest.fixture
def quick(monkeypatch):
    """Remove the delay after wrong passwords."""
    monkeypatch.setattr(doors, "SLOWER", 0.0)


def guess(app, *, times=10, **headers):
    """Try wrong passwords, and return the response to the right one."""
    asking = client(app, host=headers.pop("host", "127.0.0.1"), headers=headers)
    form = {"name": "ada", "csrf": csrf(asking)}
    for _ in range(times):
        asking.post("/login", data=form | {"password": "wrong"})
    return asking.post("/login", data=form | {"password": "engine"})


def test_whoever_guesses_is_stopped_alone(log, quick, caplog):
    """Ten wrong passwords from one address block that address; each is logged."""
    app = dashboard(log, login=("ada", "engine"))

    assert guess(app, host="192.0.2.7").status_code == 429
    assert guess(app, times=0, host="192.0.2.8").status_code == 200
    failed = [r.getMessage() for r in caplog.records if "sign-in" in r.getMessage()]
    assert ["A sign-in to the page from 192.0.2.7 failed."] * 10 == failed


def test_a_proxy_on_this_machine_says_who_guesses(log, quick):
    """Behind a proxy on this machine, the address is the last one in its header."""
    app = dashboard(log, login=("ada", "engine"))
    guessing = {"x-forwarded-for": "192.0.2.1, 192.0.2.7"}

    assert guess(app, **guessing).status_code == 429
    assert guess(app, times=0, **{"x-forwarded-for": "192.0.2.8"}).status_code == 200
    # From elsewhere anyone may say anything.
    assert guess(app, times=9, host="192.0.2.9", **guessing).status_code == 200


def test_many_wrong_tries_slow_all():
    """The more recent wrong attempts, the longer a response takes, up to a second."""
    attempts = doors.Attempts()

    delays = [attempts.delay]
    for number in range(100):
        assert attempts.begin(f"192.0.2.{number}")
        delays.append(attempts.delay)
    assert 0 == delays[0] < delays[5] < delays[20] < delays[-1] == doors.SLOWEST
    assert attempts.begin("192.0.2.200")


@pytest.mark.parametrize("how", ["key", "login"])
def test_signing_out_ends_the_session(log, how):
    """A cookie kept from before the sign-out is invalid."""
    settings = {"key": KEY} if how == "key" else {"login": ("ada", KEY)}
    app = dashboard(log, **settings)
    asking = client(app)
    token = csrf(asking)
    asking.post("/login", data={"name": "ada", "password": KEY, "csrf": token})
    kept = dict(asking.cookies)
    assert client(app, cookies=kept).get("/jobs.json").status_code == 200

    asking.post("/logout", data={"csrf": token})

    assert client(app, cookies=kept).get("/jobs.json").status_code == 401


def test_a_new_password_ends_every_session(log):
    """A session is only valid for the password that it was begun with."""
    asking = client(dashboard(log, login=("ada", "engine")))
    asking.post("/login", data={"name": "ada", "password": "engine", "csrf": csrf(asking)})

    changed = client(dashboard(log, login=("ada", "turbine")), cookies=asking.cookies)
    assert changed.get("/jobs.json").status_code == 401


@pytest.mark.parametrize("session", ["", "1.x", "99999999999.00", "x.y", "9" * 20 + "." + "0" * 64])
def test_a_session_cannot_be_made_up(log, session):
    """Only a signed session is valid."""
    asking = client(dashboard(log, login=("ada", "engine")))
    door = doors.Door("engine", name="ada")
    asking.cookies.set(door.cookie, session)

    assert asking.get("/jobs.json").status_code == 401


@pytest.mark.parametrize("target", ["https://evil.example", "//evil.example", "/\\evil", "\n/x"])
def test_a_sign_in_leads_nowhere_else(log, target):
    """The redirect after the sign-in leads only to a page of the dashboard."""
    asking = client(dashboard(log, login=("ada", "engine")), follow_redirects=False)
    form = {"name": "ada", "password": "engine", "csrf": csrf(asking), "next": target}

    assert asking.post("/login", data=form).headers["location"] == "/"


# Programs


def test_a_token_opens_metrics_and_health_alone(log):
    """A scraper needs no session, and its token opens nothing else."""
    asking = client(dashboard(log, key=KEY, metrics_token=TOKEN), follow_redirects=False)
    bearer = {"authorization": f"Bearer {TOKEN}"}

    opened = [path for path in ROUTES if asking.get(path, headers=bearer).status_code == 200]
    assert ["/metrics", "/health"] == opened
    assert asking.get("/metrics", headers={"authorization": f"Bearer {TOKEN}x"}).is_error
    assert asking.get("/metrics").status_code in {303, 401}


@pytest.mark.parametrize("mount", ["", "/ops/jobs"])
def test_a_live_probe_says_nothing_else(log, mount):
    """The liveness probe needs no key, and makes no query."""
    app = dashboard(log, key=KEY)
    log.database.close()
    asking = client(Starlette(routes=[Mount(mount, app)]) if mount else app)

    answer = asking.get(f"{mount}/live")
    assert (200, "ok") == (answer.status_code, answer.text)
    assert log.database.is_closed()


def test_locks_tell_no_token(log):
    """Read-only users learn nothing that could release a lock, or end a run."""
    with log.lock("nightly") as lease, client(dashboard(log, key=KEY)) as asking:
        asking.get("/", params={"key": KEY})
        (lock,) = asking.get("/locks.json").json()["locks"]

    assert lock["key"] == "nightly"
    assert lock["fence"] == lease.fence
    assert "token" not in lock
    assert "process" not in lock


def test_a_level_hides_what_jobs_were_sent(log):
    """Users without access to arguments see neither them nor the job's reports and lines."""
    log.Job.create(
        jid="1", actor="work", queue="default", state="finished", attempt=1,
        created_at=1, updated_at=1, args=["s3cret"], kwargs={"k": "s3cret"},
        meta={"m": "s3cret"}, progress={"done": 1, "total": 2, "text": "s3cret"},
    )  # fmt: skip
    log.Line.create(jid="1", token="t", number=1, attempt=1, time=1, level="INFO", logger="work",
                    text="s3cret")  # fmt: skip
    paths = ("/", "/overview.json", "/jobs", "/jobs.json", "/jobs/1")

    def shown(level):
        asking = client(dashboard(log, authorize=lambda request: level))
        accepts = ({}, {"accept": "application/json"})
        return [asking.get(path, headers=kind).text for path in paths for kind in accepts]

    assert any("s3cret" in text for text in shown("read-only"))
    assert all("s3cret" not in text for text in shown("without-arguments"))


@pytest.mark.parametrize("path", ["/login", "/logout", "/do/dismiss"])
def test_a_body_is_bounded_before_it_is_read(log, path):
    """A form that is too long is refused while it arrives, and not buffered."""
    asking = client(dashboard(log, key=KEY))
    asking.get("/", params={"key": KEY})
    sent = 0

    def body():
        nonlocal sent
        for _ in range(200):
            sent += 100_000
            yield b"x" * 100_000

    form = {"content-type": "application/x-www-form-urlencoded"}
    assert asking.post(path, content=body(), headers=form).status_code == 413
    assert MAX_BODY < 200 * 100_000


# A real proxy


@contextlib.contextmanager
def serving(app):
    """Serve an application with uvicorn on a local port, and yield the port."""
    uvicorn = pytest.importorskip("uvicorn")
    port = servers.free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="critical", ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield port
    finally:
        server.should_exit = True
        thread.join()


@contextlib.contextmanager
def proxied(port, folder):
    """Run a plain nginx in front of a port, and yield its port."""
    nginx = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/bin")
    if nginx is None:
        pytest.skip("there is no nginx: apt install nginx")
    front = servers.free_port()
    (folder / "nginx.conf").write_text(f"""
        daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;
        events {{}}
        http {{
            access_log off; client_body_temp_path {folder}; proxy_temp_path {folder};
            fastcgi_temp_path {folder}; uwsgi_temp_path {folder}; scgi_temp_path {folder};
            server {{ listen 127.0.0.1:{front};
                     location / {{ proxy_pass http://127.0.0.1:{port}; }} }}
        }}
    """)
    command = [nginx, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 15
        while True:
            with contextlib.suppress(httpx.TransportError):
                httpx.get(f"http://127.0.0.1:{front}/live", verify=False)
                break
            assert process.poll() is None, (folder / "error.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield front
    finally:
        process.terminate()
        process.wait()


def test_a_plain_proxy_opens_nothing(log, tmp_path):
    """Behind an nginx that sets no headers, the dashboard still requires its key."""
    with serving(dashboard(log, key=KEY)) as port, proxied(port, tmp_path) as front:
        address = f"http://127.0.0.1:{front}"

        refused = {httpx.get(address + path, verify=False).status_code for path in ROUTES}
        with httpx.Client(base_url=address, follow_redirects=True) as asking:
            let_in = asking.get("/jobs", params={"key": KEY})
            again = asking.get("/jobs.json")

    assert refused <= {303, 401, 403}
    assert (200, 200) == (let_in.status_code, again.status_code)


@pytest.mark.full
@pytest.mark.parametrize("way", ["the address", "the form"])
def test_a_browser_behind_a_plain_proxy(log, tmp_path, way):
    """Through an nginx that hides the host name, users can sign in, act and sign out."""
    log.Job.create(
        jid="1", actor="work", queue="default", state="dead", attempt=1, created_at=1,
        updated_at=1, finished_at=int(time.time() * 1000),
    )  # fmt: skip
    resolver = "--host-resolver-rules=MAP jobs.example 127.0.0.1"
    app = dashboard(log, key=KEY)
    with serving(app) as port, proxied(port, tmp_path) as front, chromium(resolver) as browser:
        page = browser.new_page()
        address = f"http://jobs.example:{front}"
        if way == "the address":
            page.goto(f"{address}/jobs/1?key={quote(KEY)}")
        else:
            page.goto(f"{address}/jobs/1")
            page.locator("input[name=password]").fill(KEY)
            page.locator("form button[type=submit]").click()
        page.wait_for_url(f"{address}/jobs/1")
        page.goto(f"{address}/confirm/dismiss?jid=1")
        page.get_by_role("button", name="Dismiss").click()
        page.get_by_text("1 job is dismissed.").wait_for()
        assert page.url.startswith(f"{address}/jobs/1")
        assert log.get("1").dismissed_at is not None
        page.get_by_role("button", name="Sign out").click()
        page.wait_for_url(f"{address}/login")
        page.goto(f"{address}/jobs/1")
        assert page.url.startswith(f"{address}/login?")


@pytest.mark.full
def test_the_command_prints_an_address_with_a_key(log, sqlite_url):
    """``web`` prints the URL to open, once; without its key there is no access."""
    command = [sys.executable, "-m", "dramatiq_joblog", "--database", sqlite_url]
    process = subprocess.Popen([*command, "web", "--port", "0"], stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        address = next(word for word in line.split() if word.startswith("http://"))
        with httpx.Client(follow_redirects=True) as asking:
            assert asking.get(address.partition("?")[0]).url.path == "/login"
            assert asking.get(address).status_code == 200
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()
