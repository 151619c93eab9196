"""The examples of docs/web.md as printed: FastAPI, Starlette, Flask, Django."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import servers

DOCS = Path(__file__).parents[2] / "docs" / "web.md"
FILE = re.compile(r'^```python title="([^"]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)

#: Makes Django's tables and one user, and prints the cookie of a session of hers.
SIGN_IN = """
import os, django
os.environ["DJANGO_SETTINGS_MODULE"] = "shop_settings"
django.setup()
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY, models
from django.contrib.sessions.backends.db import SessionStore
from django.core.management import call_command
call_command("migrate", verbosity=0)
user = models.User.objects.create_user("grace", password="cobol", is_staff=True)
session = SessionStore()
session[SESSION_KEY] = str(user.pk)
session[BACKEND_SESSION_KEY] = "django.contrib.auth.backends.ModelBackend"
session[HASH_SESSION_KEY] = user.get_session_auth_hash()
session.create()
print(session.session_key)
"""


@pytest.fixture
def folder(tmp_path):
    """Return a folder with the files that the page shows."""
    for name, text in FILE.findall(DOCS.read_text()):
        (tmp_path / name).write_text(text)
    return tmp_path


def get(url, **headers):
    """Return the status and text of a response; None without a response."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=5) as a:
            return a.status, a.read().decode()
    except urllib.error.HTTPError as e:
        return e.code, e.read().decode()
    except OSError:
        return None


@pytest.fixture
def serve(folder, eventually):
    """Return a function that runs a server's command in the folder, and returns its URL."""
    running = []
    log = (folder / "log").open("wb")

    def start(*command):
        port = servers.free_port()
        process = servers.launch(
            [sys.executable, "-m", *command, "--port", str(port)],
            on_parent_death=signal.SIGTERM,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(folder)},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        running.append(process)
        address = f"http://127.0.0.1:{port}"
        eventually(lambda: process.poll() is None and get(address + "/"), timeout=30)
        return address

    yield start
    for process in running:
        process.terminate()
        process.wait(timeout=30)
    log.close()


def check(address, **headers):
    """Check that the mounted dashboard is complete: its links, and JSON."""
    status, html = get(address + "/joblog/jobs", **headers)
    links = set(re.findall(r'(?:href|src)="(/[^"]+)"', html))

    assert status == 200
    assert all(link.startswith("/joblog/") for link in links)
    assert {get(address + link, **headers)[0] for link in links} == {200}
    assert get(address + "/joblog/nope", **headers)[0] == 404


@pytest.mark.process
@pytest.mark.full
@pytest.mark.parametrize(
    "command",
    [
        ("uvicorn", "fastapi_shop:app"),
        ("uvicorn", "starlette_shop:app"),
        ("flask", "--app", "flask_shop", "run"),
    ],
    ids=["fastapi", "starlette", "flask"],
)
def test_it_lives_in_a_framework(serve, folder, command):
    """Mounted in a framework, the dashboard works with the application's own pages."""
    address = serve(*command)

    key = re.search(r"\?key=(\S+)", (folder / "log").read_text())[1]
    check(address, authorization=f"Bearer {key}")
    assert "/joblog/" in get(address + "/")[1]
    assert get(address + "/joblog/jobs.json")[0] == 401
    assert get(address + "/joblog/jobs.json", **{"x-forwarded-for": "127.0.0.1"})[0] == 401


@pytest.mark.process
@pytest.mark.full
def test_it_asks_django_who_it_is(serve, folder):
    """In Django, its own users decide: no access without a user, and read-only for staff."""
    session = subprocess.run(
        [sys.executable, "-c", SIGN_IN], cwd=folder, capture_output=True, text=True, check=True
    ).stdout.strip()
    address = serve("uvicorn", "django_shop:app")
    cookie = {"cookie": f"sessionid={session}"}

    assert get(address + "/")[1] == "the jobs are at /joblog/"
    assert get(address + "/joblog/jobs")[0] == 403
    assert get(address + "/joblog/jobs.json")[0] == 403
    check(address, **cookie)
    assert ">grace</span>" in get(address + "/joblog/jobs", **cookie)[1]
    assert get(address + "/joblog/confirm/dismiss?jid=x", **cookie)[0] == 403
