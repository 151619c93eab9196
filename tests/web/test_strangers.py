"""Attacks on the sign-in: forged headers, odd methods, paths and bodies, many at once."""

from __future__ import annotations

import asyncio

import httpx2 as httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from dramatiq_joblog import JobLog
from dramatiq_joblog.web import access as accesses
from dramatiq_joblog.web import dashboard
from dramatiq_joblog.web import door as doors

KEY = "a key of the tests, long enough"
FORGED = (
    *("x-forwarded-for", "x-real-ip", "x-client-ip", "true-client-ip", "x-cluster-client-ip"),
    *("forwarded", "via", "x-forwarded-host", "x-forwarded-proto", "x-forwarded-prefix"),
    *("x-forwarded-user", "x-remote-user", "remote-user", "x-auth-request-user"),
    *("x-original-url", "x-rewrite-url", "x-http-method-override", "x-script-name"),
)
VALUES = ("127.0.0.1", "localhost", "/live", "/static/x/style.css", "GET", "ada", "https")
TRICKS = (
    *("//jobs.json", "/./jobs.json", "/static/../jobs.json", "/static/x/../../jobs.json"),
    *("/static/%2e%2e/jobs.json", "/static/..%2fjobs.json", "/live/../jobs.json", "/live/"),
    *("/jobs.json;.css", "/live;/jobs.json", "/jobs.json/", "/JOBS.json", "/jobs.json%00"),
    *("/%6aobs.json", "/jobs%2ejson", "/static//jobs.json", "/jobs.json?/static/", "/live%2f"),
    *("/jobs/static/x", "/metrics/", "/health;", "/do/../jobs.json", "/login/../jobs.json"),
    *("/tickets/../jobs.json", "/tickets/x/../../jobs.json", "/tickets//jobs.json", "/tickets/"),
)
#: Methods that nobody uses here.
METHODS = ("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "JUNK")
FORM = "application/x-www-form-urlencoded"


@pytest.fixture
def log(sqlite_database):
    """Return a log with one job in it."""
    log = JobLog(sqlite_database)
    log.Job.create(
        jid="1", actor="s3cret", queue="default", state="dead", attempt=1, created_at=1,
        updated_at=1,
    )  # fmt: skip
    yield log
    log.close()


def client(app, host="127.0.0.1", **kwargs):
    """Return a client with the address *host*, without redirects."""
    kwargs.setdefault("base_url", "http://localhost")
    return TestClient(app, client=(host, 50_000), follow_redirects=False, **kwargs)


@pytest.fixture
def inside(log):
    """Return a signed-in client, and its token."""
    asking = client(dashboard(log, key=KEY))
    asking.get("/", params={"key": KEY})
    asking.get("/jobs")
    return asking, asking.cookies["joblog_csrf"]


@pytest.mark.parametrize("mount", ["", "/ops"])
def test_no_header_lets_anyone_in(log, mount):
    """Headers about a request's origin, user or path have no effect."""
    page = dashboard(log, key=KEY)
    asking = client(Starlette(routes=[Mount(mount, page)]) if mount else page)

    sets = [{name: "127.0.0.1"} for name in FORGED]
    sets += [dict.fromkeys(FORGED, value) for value in VALUES]
    for headers in sets:
        for path in ("/jobs.json", "/"):
            answer = asking.get(mount + path, headers=headers)
            assert answer.status_code in {303, 401}, (headers, path)
            assert "s3cret" not in answer.text


def test_no_path_leads_past_the_door(log):
    """However a path is written, the response has no protected content."""
    asking = client(dashboard(log, key=KEY))

    for path in TRICKS:
        # As it stands: a client would tidy it up.
        request = asking.build_request("GET", "http://localhost/")
        raw = path.encode()
        request.url = request.url.copy_with(raw_path=raw)
        answer = asking.send(request)
        assert answer.status_code in {303, 401, 404}, path
        assert "s3cret" not in answer.text, path


@pytest.mark.few(3)
@pytest.mark.parametrize("method", METHODS)
def test_odd_methods_are_refused(log, inside, method):
    """An unsupported method is refused, and changes nothing, even when signed in."""
    outside = client(dashboard(log, key=KEY))
    for asking, refused in ((outside, {401}), (inside[0], {404, 405})):
        for path in ("/", "/jobs", "/jobs/1", "/locks.json", "/nope"):
            assert asking.request(method, path).status_code in refused, path
    assert log.get("1").state == "dead"
    assert log.actions.count() == 0


def test_a_head_says_as_much_as_a_get(log, inside):
    """HEAD needs access too, and does not accept a key."""
    outside = client(dashboard(log, key=KEY))

    assert outside.head("/jobs.json").status_code == 401
    assert "set-cookie" not in outside.head("/", params={"key": KEY}).headers
    assert inside[0].head("/jobs.json").status_code == 200


@pytest.mark.parametrize("scope", ["websocket", "lifespan"])
def test_nothing_but_http_is_served(log, scope):
    """A websocket is closed before it opens, and a host without a lifespan is served as well."""
    app = dashboard(log, key=KEY)
    sent = []

    async def receive():
        kind = {"websocket": "websocket.connect", "lifespan": "lifespan.shutdown"}[scope]
        return {"type": kind if sent or scope == "websocket" else "lifespan.startup"}

    async def send(message):
        sent.append(message)

    facts = {"type": scope, "path": "/jobs", "headers": [], "query_string": b"", "subprotocols": []}
    asyncio.run(app(facts | {"scheme": "ws", "root_path": ""}, receive, send))
    closed = "websocket.close"
    assert (closed if scope == "websocket" else "lifespan.shutdown.complete") == sent[-1]["type"]


# The key


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1:8101", "[", "a b", "x" * 300, ""])
def test_the_key_leads_to_no_host(log, host):
    """The redirect after a key does not contain the request's Host."""
    asking = client(dashboard(log, key=KEY))

    answer = asking.get("/jobs", params={"key": KEY, "q": "state:dead"}, headers={"host": host})
    assert answer.status_code == 303
    assert answer.headers["location"] == "/jobs?q=state%3Adead"
    assert asking.get("/jobs", headers={"host": host}).status_code == 200


def test_a_path_of_another_host_is_none(log):
    """A path that begins with // redirects to a path on this host."""
    asking = client(dashboard(log, key=KEY))
    request = asking.build_request("GET", "http://localhost/")
    request.url = request.url.copy_with(
        raw_path=f"//evil.example/jobs?key={KEY}".encode().replace(b" ", b"+")
    )

    assert asking.send(request).headers["location"] == "/evil.example/jobs"


def test_a_key_goes_out_of_every_address(log, inside):
    """Neither a repeated key nor a wrong one stays in a URL or a link."""
    asking, _ = inside

    again = asking.get("/jobs", params={"key": KEY, "q": "x"})
    assert (303, "/jobs?q=x") == (again.status_code, again.headers["location"])
    wrong = client(dashboard(log, key=KEY)).get("/jobs", params={"key": "wrong", "q": "x"})
    assert wrong.headers["location"] == "/login?next=%2Fjobs%3Fq%3Dx"
    page = asking.get("/jobs")
    assert page.headers["referrer-policy"] == "no-referrer"
    assert page.headers["cache-control"] == "no-store"


def test_who_is_inside_needs_not_sign_in(log, inside):
    """The sign-in page redirects signed-in users to their target, within the dashboard."""
    asking, _ = inside

    assert asking.get("/login", params={"next": "/locks"}).headers["location"] == "/locks"
    assert asking.get("/login", params={"next": "//evil.example"}).headers["location"] == "/"
    came = client(dashboard(log, key=KEY))
    first = came.get("/login", params={"next": "/locks", "key": KEY}).headers["location"]
    assert first == "/login?next=%2Flocks"
    assert came.get(first).headers["location"] == "/locks"


@pytest.mark.few(4)
@pytest.mark.parametrize(
    "target",
    [
        *("/x\r\nset-cookie: a=b", "/x%0d%0aset-cookie:%20a=b", "javascript:alert(1)", "http:x"),
        *("///evil.example", "/\t/evil.example", "\\\\evil.example", "/ /evil", "./x", "?x", "#x"),
    ],
)
def test_no_redirect_leads_away_or_splits(log, target):
    """The target after a sign-in is a path of the dashboard, in one header."""
    asking = client(dashboard(log, login=("ada", "engine")))
    asking.get("/login")
    form = {"name": "ada", "password": "engine", "csrf": asking.cookies["joblog_csrf"]}

    answer = asking.post("/login", data=form | {"next": target})
    location = answer.headers["location"]
    assert location.startswith("/")
    assert not location.startswith(("//", "/\\"))
    assert "a=b" not in answer.headers.get("set-cookie", "").replace("set-cookie", "")
    assert len([name for name, _ in answer.headers.multi_items() if name == "location"]) == 1


def test_a_cookie_of_before_is_no_session(log):
    """A cookie planted before the sign-in is replaced by it."""
    app = dashboard(log, key=KEY)
    door = doors.Door(KEY)
    planted = client(app)
    planted.cookies.set(door.cookie, "planted")
    planted.get("/", params={"key": KEY})

    sessions = [c.value for c in planted.cookies.jar if c.name == door.cookie]
    assert "planted" != sessions[-1]
    assert client(app, cookies={door.cookie: "planted"}).get("/jobs.json").status_code == 401


# Many at once


def sign_in(app, secrets, headers=None):
    """Try some passwords at the same time; return the statuses."""

    async def ask():
        transport = httpx.ASGITransport(app=app, client=("127.0.0.1", 1))
        async with httpx.AsyncClient(
            transport=transport, base_url="http://localhost", headers=headers
        ) as asking:
            await asking.get("/login")
            form = {"name": "ada", "csrf": asking.cookies["joblog_csrf"]}
            tries = [asking.post("/login", data=form | {"password": text}) for text in secrets]
            return [answer.status_code for answer in await asyncio.gather(*tries)]

    return asyncio.run(ask())


def test_tries_at_the_same_time_are_counted(log):
    """A hundred concurrent attempts from one address count as a hundred."""
    app = dashboard(log, login=("ada", "engine"))

    found = sign_in(app, ["wrong"] * 100, {"x-forwarded-for": "192.0.2.7"})

    assert {403: doors.WRONG_AT_MOST, 429: 100 - doors.WRONG_AT_MOST} == {
        code: found.count(code) for code in set(found)
    }


def test_nobody_is_locked_out_by_others_behind_the_same_proxy(log, monkeypatch):
    """A proxy that sets no client address is shared by all users: it is not blocked."""
    monkeypatch.setattr(doors, "SLOWER", 0.0)
    app = dashboard(log, login=("ada", "engine"))

    assert {403} == set(sign_in(app, ["wrong"] * 30))
    assert [303] == sign_in(app, ["engine"])


def test_signing_in_counts_as_no_wrong_try(log, monkeypatch):
    """Frequent correct sign-ins are not blocked."""
    monkeypatch.setattr(doors, "SLOWER", 0.0)
    app = dashboard(log, login=("ada", "engine"))
    at = {"x-forwarded-for": "192.0.2.7"}

    assert [303] * 15 == [sign_in(app, ["engine"], at)[0] for _ in range(15)]


# Forms of elsewhere


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data; boundary=x", "text/xml", ""])
def test_a_form_of_another_kind_does_nothing(log, inside, kind):
    """Requests that another site can send without a preflight change nothing."""
    asking, token = inside
    plain = f"csrf={token}&jid=1"
    parts = '--x\r\ncontent-disposition: form-data; name="jid"\r\n\r\n1\r\n--x--\r\n'
    body = parts if "boundary" in kind else plain

    for path in ("/do/dismiss", "/logout", "/zone", "/login"):
        headers = {"content-type": kind} if kind else {}
        assert asking.post(path, content=body, headers=headers).status_code == 403, path
    assert log.get("1").dismissed_at is None
    assert asking.get("/jobs.json").status_code == 200


@pytest.mark.few(3)
@pytest.mark.parametrize(
    "body",
    [b"", b"--x", b"--x\r\n\r\n", b"\0" * 100, b"--x\r\ncontent-disposition: x\r\n\r\n--x--"],
)
@pytest.mark.parametrize(
    "kind", ["multipart/form-data", "multipart/form-data; boundary=x", FORM + "; charset=utf-16"]
)
def test_a_broken_form_is_refused(inside, body, kind):
    """An invalid form is refused, without an error."""
    asking, _ = inside

    for path in ("/do/dismiss", "/login", "/zone"):
        answer = asking.post(path, content=body, headers={"content-type": kind})
        assert answer.status_code in {400, 403}, path


@pytest.mark.few(4)
@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({"origin": "http://evil.example"}, False),
        ({"origin": "http://["}, False),
        ({"origin": "http://localhost:81"}, False),
        ({"origin": "http://localhost"}, True),
        ({"origin": "null"}, True),
        ({"sec-fetch-site": "cross-site"}, False),
        ({"sec-fetch-site": "same-site", "origin": "null"}, False),
        # A proxy put another Host in the place of the browser's, which says that it fits.
        ({"sec-fetch-site": "same-origin", "origin": "https://jobs.shop.example"}, True),
        ({"referer": "http://evil.example/"}, True),
    ],
)
def test_forms_are_sent_from_here(log, inside, headers, allowed):
    """The browser's origin headers are checked, in addition to the token."""
    asking, token = inside
    form = {"csrf": token, "jid": "1", "reason": "seen"}

    assert asking.post("/do/dismiss", data=form | {"csrf": "x"}, headers=headers).status_code == 403
    done = asking.post("/do/dismiss", data=form, headers=headers)
    assert (done.status_code == 303) is allowed
    assert (log.get("1").dismissed_at is not None) is allowed


# Bodies


def test_only_lists_of_jobs_may_be_long(log, inside):
    """Requests without a session are limited to the size of a sign-in."""
    asking, token = inside
    long = {"csrf": token, "name": "x" * accesses.MAX_SMALL_BODY}

    for path in ("/login", "/logout", "/zone"):
        assert asking.post(path, data=long).status_code == 413
    form = {"csrf": token, "jid": ["1", "2" * accesses.MAX_SMALL_BODY]}
    assert asking.post("/do/dismiss", data=form).status_code != 413


def test_who_may_not_act_is_not_listened_to(log):
    """A form of a read-only user is refused before it is read."""
    asking = client(dashboard(log, authorize=lambda request: "read-only"))

    def body():
        raise AssertionError("it was read")
        yield b""

    form = {"content-type": FORM}
    assert asking.post("/do/dismiss", content=body(), headers=form).status_code == 403


def test_a_body_that_does_not_come_is_not_waited_for(log, monkeypatch):
    """A form that is sent a byte at a time is refused when its time is over."""
    monkeypatch.setattr(accesses, "BODY_WITHIN", 0.2)
    app = dashboard(log, key=KEY)
    sent = []

    async def ask():
        async def receive():
            await asyncio.sleep(0.05)
            return {"type": "http.request", "body": b"x", "more_body": True}

        async def send(message):
            sent.append(message)

        headers = [(b"host", b"localhost"), (b"content-type", FORM.encode())]
        scope = {"type": "http", "method": "POST", "path": "/login", "headers": headers}
        scope |= {"query_string": b"", "root_path": "", "scheme": "http", "client": ("1.2.3.4", 1)}
        await asyncio.wait_for(app(scope, receive, send), 30)

    asyncio.run(ask())
    assert sent[0]["status"] == 408


# Where it lives


@pytest.mark.few(2)
@pytest.mark.parametrize(
    "root", ["/joblog", "/job log", "/jöb", "/a/b;c", "/100%", "/jobs", "/live"]
)
def test_it_lives_under_any_path(log, root):
    """Links, cookies and redirects have the path of the mount."""
    app = Starlette(routes=[Mount(root, dashboard(log, key=KEY))])
    asking = client(app)
    outside = asking.get(f"{root}/jobs.json".replace("%", "%25"))
    assert outside.status_code == 401

    first = asking.get(f"{root}/jobs".replace("%", "%25"), params={"key": KEY})
    assert first.status_code == 303
    page = asking.get(first.headers["location"])
    assert page.status_code == 200
    link = page.text.partition('id="nav-locks"')[2].partition('href="')[2].partition('"')[0]
    assert link.endswith("/locks")
    assert asking.get(link).status_code == 200
    slash = asking.get(f"{link}/", headers={"host": "evil.example"})
    assert (303, link) == (slash.status_code, slash.headers["location"])


def test_a_proxy_may_cut_the_path_off(log):
    """Behind a proxy that strips the path, the server's root path is in every link."""
    asking = client(dashboard(log, key=KEY), root_path="/joblog")

    first = asking.get("/jobs", params={"key": KEY})
    assert first.headers["location"] == "/joblog/jobs"
    assert "path=/joblog" in first.headers["set-cookie"].lower()
