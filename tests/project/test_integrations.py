"""The examples of docs/integrations run as printed, on a real Redis."""

from __future__ import annotations

import contextlib
import json
import os
import re
import urllib.error
import urllib.request
from pathlib import Path

import documents
import pytest
import servers

from dramatiq_joblog import JobLog

PAGES = Path(__file__).parents[2] / "docs" / "integrations"
FILE = re.compile(r'^```python title="([^"]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)

# Each is an example of the documentation, of which the log itself needs none.
pytestmark = [pytest.mark.process, pytest.mark.full]


@pytest.fixture
def run_in(tmp_path, monkeypatch, redis_url, run_python, start_python):
    """Return a function that writes a page's files, and one that runs a Python command there."""
    environment = os.environ | {
        "PYTHONPATH": str(tmp_path),
        "PYTHONUNBUFFERED": "1",
        "REDIS_URL": redis_url,
        "DJANGO_SETTINGS_MODULE": "shop.settings",
    }

    def write(page):
        found = FILE.findall((PAGES / f"{page}.md").read_text())
        assert found, f"docs/integrations/{page}.md shows no file"
        for name, text in found:
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)

    def run(*command):
        process = run_python(*command, environment=environment)
        assert process.returncode == 0, process.stdout + process.stderr
        return process.stdout

    @contextlib.contextmanager
    def running(*command):
        path = tmp_path / f"{command[0].replace('/', '-')}.log"
        with path.open("wb") as log:
            process = start_python("-m", *command, environment=environment, log=log)
        try:
            yield path
        finally:
            process.terminate()
            process.wait(timeout=30)

    return write, run, running


WORKER = ("--processes", "1", "--threads", "2")


def ask(url, **data):
    """Return the JSON of an HTTP response; None without a response."""
    request = urllib.request.Request(url, data=b"" if data else None)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as e:
        return e.code
    except OSError:
        return None


def test_a_plain_script(run_in, eventually, tmp_path):
    """A script sends, a worker runs, another script queries."""
    write, run, running = run_in
    write("scripts")
    run("send.py")
    joblog = JobLog(f"sqlite:///{tmp_path / 'jobs.db'}")

    with running("dramatiq", "jobs", *WORKER):
        eventually(lambda: joblog.jobs.in_state("finished", "dead").count() == 2, timeout=30)

    assert ["dead [7, 13] there is no month 13", "finished [7, 1] "] == sorted(
        run("ask.py").splitlines()
    )
    joblog.close()


def test_results_pipelines_and_groups(run_in, eventually, tmp_path):
    """Results work with the log, and each message of a pipeline or a group has its row."""
    write, run, running = run_in
    write("results")
    joblog = JobLog(f"sqlite:///{tmp_path / 'jobs.db'}")
    joblog.create_tables()

    with running("dramatiq", "jobs", *WORKER) as log:
        assert ["10", "[0, 2, 4]"] == run("send.py").splitlines()
        eventually(lambda: joblog.jobs.finished().count() == 7, timeout=30)

    assert "all three are done" in log.read_text()
    first, second, third = joblog.jobs.of_type("sum").order_by(joblog.Job.id).limit(9)[:3]
    assert [first.jid, second.jid] == [second.parent_jid, third.parent_jid]
    assert first.jid == third.root_jid
    joblog.close()


def test_a_scheduler(run_in, eventually, tmp_path):
    """Scheduled jobs are logged when sent, and not sent twice before they are done."""
    write, _, running = run_in
    write("scheduler")
    joblog = JobLog(f"sqlite:///{tmp_path / 'jobs.db'}")
    joblog.create_tables()

    with running("scheduler") as output:
        eventually(lambda: "the last one has not ended yet" in output.read_text(), timeout=30)
        assert 1 == joblog.jobs.count()
        with running("dramatiq", "jobs", *WORKER):
            eventually(lambda: joblog.jobs.finished().count() >= 2, timeout=30)
    joblog.close()


@pytest.mark.parametrize("framework", ["fastapi", "flask"])
def test_a_web_application(run_in, eventually, framework):
    """An endpoint sends a job, and another one returns its state."""
    write, _, running = run_in
    write(framework)
    port = servers.free_port()
    serve = {
        "fastapi": ("uvicorn", "shop:app", "--port", str(port)),
        "flask": ("flask", "--app", "shop", "run", "--port", str(port)),
    }[framework]
    here = f"http://127.0.0.1:{port}"

    with running(*serve), running("dramatiq", "shop", *WORKER):
        eventually(lambda: ask(f"{here}/invoices/none") == 404, timeout=30)
        jid = ask(f"{here}/invoices/7", method="POST")["jid"]
        eventually(lambda: ask(f"{here}/invoices/{jid}")["state"] == "finished", timeout=30)
        if framework == "fastapi":
            with urllib.request.urlopen(f"{here}/jobs/", timeout=10) as page:
                assert "text/html" in page.headers["content-type"]


def test_django(run_in, eventually):
    """The log is in Django's database, and a view queries a user's jobs."""
    write, run, running = run_in
    write("django")
    port = servers.free_port()
    run("-m", "django", "migrate")
    here = f"http://127.0.0.1:{port}"

    serve = ("django", "runserver", "--noreload", str(port))
    with running(*serve), running("dramatiq", "shop.jobs", *WORKER):
        eventually(lambda: ask(f"{here}/sign-up/ada") is not None, timeout=30)
        eventually(
            lambda: ask(f"{here}/jobs/ada") == {"states": ["finished"]},
            timeout=30,
        )


CUSTOMERS = """
from django.db import models

class Customer(models.Model):
    name = models.TextField()
"""

ADMIN = """
import shop.settings
shop.settings.INSTALLED_APPS += ["customers"]
import django
django.setup()
from django.contrib import admin
from django.core.management import call_command
call_command("migrate", verbosity=0, run_syncdb=True)
from customers.models import Customer
ada = Customer.objects.create(name="Ada")
shown = admin.site.get_model_admin(Customer)
print(shown.readonly_fields, shown.jobs(ada))
"""

BROKER = """
import shop.settings
shop.settings.INSTALLED_APPS += ["django_dramatiq"]
import django
django.setup()
import dramatiq
print(*(type(m).__name__ for m in dramatiq.get_broker().middleware))
"""


def test_django_step_by_step(run_in, tmp_path):
    """The page's other examples: django_dramatiq's settings, an admin page, and a test."""
    write, run, _ = run_in
    write("django")
    broker, admin, test = (block for _, block in documents.blocks(PAGES / "django.md"))

    (tmp_path / "test_shop.py").write_text(test)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    assert "1 passed" in run("-m", "pytest", "-q", "-p", "no:cacheprovider")

    (tmp_path / "customers").mkdir()
    for name, text in (("__init__", ""), ("models", CUSTOMERS), ("admin", admin)):
        (tmp_path / "customers" / f"{name}.py").write_text(text)
    assert run("-c", ADMIN).startswith("['jobs'] ")

    with (tmp_path / "shop" / "settings.py").open("a") as settings:
        settings.write(broker)
    found = run("-c", BROKER).split()
    assert ["Retries", "JobLogMiddleware", "DbConnectionsMiddleware"] == found[2:]


PROGRESS = """
import application, views  # in this order, as a server does
from django.contrib.auth.models import User
from django.contrib.sessions.backends.db import SessionStore
from django.core.management import call_command
from django.http import Http404
from django.test import RequestFactory
from starlette.testclient import TestClient

call_command("migrate", verbosity=0)
from shop.jobs import broker, joblog, welcome

ada, bob = (User.objects.create(username=name) for name in ("ada", "bob"))
jid = welcome.send(ada.id).message_id
answers = []
for user in (ada, bob):
    session = SessionStore()
    session["_auth_user_id"] = str(user.id)
    session.save()
    cookies = {"sessionid": session.session_key}
    client = TestClient(application.application, cookies=cookies)
    answers.append(client.get(f"/reports/status/{jid}").status_code)
    request = RequestFactory().get("/")
    request.user = user
    try:
        answers.append(views.report_status(request, jid).status_code)
    except Http404:
        answers.append(404)
print(*answers)
joblog.close()
broker.close()
"""


def test_progress_in_django(run_in, tmp_path):
    """Under ASGI and by polling, only the user of a job sees its progress."""
    write, run, _ = run_in
    write("django")
    for name, (_, text) in zip(
        ("application", "views"), documents.blocks(PAGES / "progress.md"), strict=True
    ):
        (tmp_path / f"{name}.py").write_text(text)

    assert "200 200 403 404" == run("-c", PROGRESS).strip()


#: A worker of django_dramatiq, whose AdminMiddleware keeps its table.
OLD = """
import threading

import shop.settings

shop.settings.INSTALLED_APPS += ["django_dramatiq"]
shop.settings.DRAMATIQ_BROKER = {
    "BROKER": "dramatiq.brokers.stub.StubBroker",
    "OPTIONS": {},
    "MIDDLEWARE": [
        "dramatiq.middleware.AgeLimit",
        "dramatiq.middleware.Retries",
        "django_dramatiq.middleware.AdminMiddleware",
    ],
}

import django

django.setup()

import dramatiq
from django.core.management import call_command
from django_dramatiq.middleware import AdminMiddleware

call_command("migrate", verbosity=0)
broker = dramatiq.get_broker()
runs = threading.Semaphore(0)


# AdminMiddleware writes down an enqueueing when it is done: a quick run may be written before it.
class InTurn(dramatiq.Middleware):
    writing = threading.Lock()

    def before_enqueue(self, broker, message, delay):
        self.writing.acquire()

    def after_enqueue(self, broker, message, delay):
        self.writing.release()

    def before_process_message(self, broker, message):
        with self.writing:
            pass


broker.add_middleware(InTurn(), before=AdminMiddleware)


@dramatiq.actor(max_retries=1, min_backoff=10)
def pay(amount):
    runs.release()
    if amount > 5:
        raise ValueError(f"{amount} is too much")


@dramatiq.actor(max_age=1)
def late():
    pass


pay.send(1), pay.send(9), late.send()
worker = dramatiq.Worker(broker, worker_timeout=50, worker_threads=1)
worker.start()
assert all(runs.acquire(timeout=20) for _ in range(3))
broker.join("default", fail_fast=False, timeout=20_000)
worker.join()
worker.stop()
pay.send_with_options(args=(2,), delay=60_000)
pay.send(3)
"""


def test_a_move_from_django_dramatiq(run_in, tmp_path):
    """The rows of its AdminMiddleware become rows of the log, once."""
    write, run, _ = run_in
    write("django")
    (tmp_path / "old.py").write_text(OLD)
    run("old.py")

    program = ("-m", "dramatiq_joblog", "--app", "shop.jobs:joblog")
    run(*program, "migrate")

    told = run(*program, "import-django-dramatiq")

    assert told in (PAGES / "django.md").read_text()
    assert told.startswith("5 jobs written: 1 dead, 1 delayed")
    joblog = JobLog(f"sqlite:///{tmp_path / 'shop.sqlite3'}")
    dead = joblog.jobs.dead().of_actor("pay").get()
    assert (2, "retries_exhausted", "ValueError", "9 is too much") == (
        dead.attempt,
        dead.dead_reason,
        dead.error_type,
        dead.error_message,
    )
    assert [9] == dead.args
    assert "9 is too much" in dead.failures[0].traceback
    assert {} == json.loads(run(*program, "--json", "import-django-dramatiq"))
    with pytest.raises(AssertionError, match=r"'tasks' of Sqlite.* cannot be read: no such table"):
        run(*program, "import-django-dramatiq", "--table", "tasks")
    joblog.close()


def test_the_tutorial(run_in, eventually, tmp_path):
    """The tutorial's files and commands lead from nothing to a dead job that is run again."""
    write, run, running = run_in
    write("../tutorial")
    run("-m", "dramatiq_joblog", "--app", "jobs:joblog", "migrate")
    joblog = JobLog(f"sqlite:///{tmp_path / 'jobs.db'}")

    with running("dramatiq", "jobs", *WORKER):
        run("send.py")
        eventually(lambda: joblog.jobs.in_state("finished", "dead").count() == 4, timeout=60)
        printed = run("ask.py").splitlines()
        assert (
            "8 retries_exhausted [Errno 2] No such file or directory: 'missing.csv'" == printed[0]
        )
        assert "[(1, 'retried'), (2, 'retried'), (3, 'dead')]" == printed[1]
        assert "True" == run("again.py").strip()
        eventually(lambda: joblog.jobs.finished().of_type("import").count() == 3, timeout=60)
    joblog.close()


def test_an_abort(run_in, eventually, tmp_path):
    """A job aborted while running is dead, with a different reason than a failed one."""
    write, run, running = run_in
    write("abort")
    joblog = JobLog(f"sqlite:///{tmp_path / 'jobs.db'}")
    joblog.create_tables()

    with running("dramatiq", "jobs", *WORKER):
        sent = run("-c", "from jobs import count; print(count.send(600).message_id)").strip()
        eventually(joblog.jobs.started().exists, timeout=30)
        run("stop.py", sent)
        eventually(joblog.jobs.dead().exists, timeout=30)

    assert "aborted" == joblog.get(sent).dead_reason
    joblog.close()


def test_traces(run_in):
    """A job that is sent within a span of OpenTelemetry has the trace's id on its row."""
    write, run, _ = run_in
    write("traces")

    assert ["True", "1"] == run("checkout.py").splitlines()
