"""A project of two apps: its tests, its migration from AdminMiddleware, and its servers."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import servers

pytest.importorskip("django_dramatiq")

PROJECT = Path(__file__).parents[1] / "support" / "django_project"
PACKAGE = Path(__file__).parents[2] / "dramatiq_joblog"
ENGINES = {"sqlite": "sqlite3", "postgresql": "postgresql", "mysql": "mysql"}


@pytest.fixture
def folder(tmp_path):
    """Return a copy of the project, outside the scope of our own conftest.py."""
    return shutil.copytree(PROJECT, tmp_path / "shop_project")


@pytest.fixture
def project(folder, run_python):
    """Return a function that runs a Python command in the project, and returns what it prints."""

    def run(*command, code=0, **variables):
        done = run_python(
            *command, folder=folder, environment=environment(folder) | variables, timeout=180
        )
        assert code == done.returncode, done.stdout + done.stderr
        return done.stdout + done.stderr if code else done.stdout

    return run


def environment(folder):
    """Return the environment of the project's processes, on the stub broker and a SQLite file."""
    return os.environ | {
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": str(folder),
        "SHOP_BROKER": "dramatiq.brokers.stub.StubBroker",
        "SHOP_DIR": str(folder),
    }


def settings_of(url):
    """Return Django's DATABASES entry for a URL."""
    parts = urlsplit(url)
    engine = ENGINES[parts.scheme.partition("+")[0]]
    return {
        "ENGINE": f"django.db.backends.{engine}",
        "NAME": parts.path.strip("/"),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": parts.hostname or "",
        "PORT": parts.port or "",
        "TEST": {},
    }


def run_suite(project, folder, **variables):
    """Run the project's own tests."""
    (folder / "pytest.ini").write_text("[pytest]\n")
    command = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "--ds=shop.settings")
    said = project(*command, "suite/shop_suite.py", **variables)
    assert " passed" in said
    assert "skipped" not in said


@pytest.mark.full
def test_the_suite(project, folder):
    """The project's pytest-django tests pass in Django's test database, with our fixtures."""
    run_suite(project, folder)

    assert not (folder / "shop.sqlite3").exists()


@pytest.mark.full
@pytest.mark.parametrize("server", ["postgres_url", "mysql_url"])
def test_the_suite_on_a_server(project, folder, request, server):
    """The same on a server's database."""
    url = request.getfixturevalue(server)
    run_suite(project, folder, SHOP_DATABASE=json.dumps(settings_of(url)))


@pytest.mark.full
def test_the_move_from_admin_middleware(project):
    """Step by step, as documented: in parallel, after copying the table, and as a replacement."""
    project("manage.py", "migrate", SHOP_STEP="before")
    before = json.loads(project("work.py", SHOP_STEP="before"))
    assert {"tasks": 3} == before

    project("manage.py", "migrate", SHOP_STEP="both")
    both = json.loads(project("work.py", SHOP_STEP="both"))
    assert {"tasks": 6, "jobs": 3, "dead": 1, "of ada": 3} == both
    copied = project(
        "manage.py",
        *("joblog", "import-django-dramatiq", "--user-from", "customer"),
        SHOP_STEP="both",
    )
    assert "3 jobs written: 1 dead, 2 finished" in copied

    after = json.loads(project("work.py"))
    assert {"tasks": 6, "jobs": 9, "dead": 3, "of ada": 9} == after


@pytest.mark.full
def test_either_way_to_migrate(project):
    """Django's migrations and the log's own share one table of versions, in any order."""
    lacking = project("manage.py", "check", "--database", "default", "--fail-level=WARNING", code=1)
    assert "0008_line did not run" in lacking
    project("manage.py", "joblog", "migrate")
    project("manage.py", "check", "--database", "default", "--fail-level=WARNING")
    assert "Applying joblog.0008_line... OK" in project("manage.py", "migrate")

    project("manage.py", "joblog", "migrate")
    project("manage.py", "migrate", "--check")


OWN = """
from peewee import CharField
from dramatiq_joblog import Job


class ShopJob(Job):
    shop = CharField(null=True)
"""

#: Sends a job by the project's log, and prints what Django's and the log's own rows of it are.
COMPARE = """
import dramatiq
from customers.models import Customer
from orders.tasks import invoice
from dramatiq_joblog.django import get_joblog
from dramatiq_joblog.django.models import Job
ada = Customer.objects.create(name="ada")
invoice.send_with_options(args=(ada.id,), shop="Graz")
log = get_joblog()
log.close()
ours, theirs = log.jobs.get(), Job.objects.get()
print(ours.shop, ours.jid == theirs.jid, Job._meta.db_table, Job.objects.for_user(ada).count())
"""


@pytest.mark.full
def test_a_model_of_ones_own_on_another_alias(project, folder):
    """The tables, with custom columns, are only in the named alias."""
    (folder / "shop" / "joblog.py").write_text(OWN)
    with (folder / "shop" / "settings.py").open("a") as settings:
        settings.write(
            "DATABASES['jobs'] = DATABASES['default'] | {'NAME': BASE_DIR / 'jobs.sqlite3'}\n"
            "JOBLOG = {'DATABASE': 'jobs', 'OPTIONS': {'model': 'shop.joblog.ShopJob'}}\n"
        )
    project("manage.py", "migrate")
    project("manage.py", "migrate", "--database", "jobs")

    assert "Graz True shopjob 1" in project("manage.py", "shell", "-c", COMPARE)

    with contextlib.closing(sqlite3.connect(folder / "shop.sqlite3")) as connection:
        found = connection.execute("SELECT name FROM sqlite_master WHERE name LIKE 'shop%'")
        assert [] == found.fetchall()
    # A column that is added later comes with the next migrate.
    (folder / "shop" / "joblog.py").write_text(OWN + "    town = CharField(null=True)\n")
    project("manage.py", "migrate", "--database", "jobs")
    assert "Graz True shopjob 1" not in project("manage.py", "joblog", "list")
    with contextlib.closing(sqlite3.connect(folder / "jobs.sqlite3")) as connection:
        columns = [row[1] for row in connection.execute("PRAGMA table_info(shopjob)")]
    assert {"shop", "town"} <= {*columns}


DJANGO_TEST = """
from customers.models import Customer
from django.test import TestCase
from orders.tasks import invoice
from dramatiq_joblog import ConfigurationError
from dramatiq_joblog.django.models import Job


class ShopTest(TestCase):
    def test_it(self):
        ada = Customer.objects.create(name="ada")
        with self.assertRaisesRegex(ConfigurationError, "run them by pytest"):
            invoice.send(ada.id)
        self.assertEqual(Job._meta.db_table, "joblog_job")
"""


@pytest.mark.full
def test_django_s_own_test_runner(project, folder):
    """Under manage.py test, writing to the development database is refused."""
    (folder / "orders" / "tests.py").write_text(DJANGO_TEST)
    project("manage.py", "migrate")

    project("manage.py", "test", "orders")

    with contextlib.closing(sqlite3.connect(folder / "shop.sqlite3")) as connection:
        assert (0,) == connection.execute("SELECT count(*) FROM joblog_job").fetchone()


def test_each_version_of_the_schema_is_a_migration_of_django():
    """Each version of the schema has a Django migration of the same name."""
    ours, theirs = (
        sorted(path.stem for path in (PACKAGE / folder / "migrations").glob("0*.py"))
        for folder in ("schema", "django")
    )
    assert ours == theirs


def ask(url, **headers):
    """Return the status, headers and text of a response; None without a response."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=10)
    try:
        connection.request("GET", parts.path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read().decode()
    except OSError:
        return None
    finally:
        connection.close()


#: Makes a user of the staff, and prints the key of a session.
SIGN_IN = """
from django.contrib.auth.models import User
from django.test import Client
client = Client()
client.force_login(User.objects.create_superuser("mira"))
print(client.cookies["sessionid"].value)
"""


@pytest.mark.full
@pytest.mark.process
@pytest.mark.parametrize(
    "command",
    [
        pytest.param(("manage.py", "runserver", "--noreload", "{}"), id="runserver"),
        pytest.param(("-m", "uvicorn", "shop.asgi:application", "--port={}"), id="asgi"),
        pytest.param(
            ("-m", "gunicorn", "shop.wsgi", "--preload", "--threads=4", "--bind=127.0.0.1:{}"),
            id="gunicorn-preload",
        ),
    ],
)
def test_what_serves_the_page(project, folder, eventually, start_python, command):
    """The dashboard works under each server of Django, even after a fork, for signed-in users."""
    module = command[1] if command[0] == "-m" else None
    if module is not None:
        pytest.importorskip(module)
    project("manage.py", "migrate")
    session = project("manage.py", "shell", "-c", SIGN_IN).split()[-1]
    port = servers.free_port()
    here = f"http://127.0.0.1:{port}"
    with (folder / "server.log").open("wb") as log:
        process = start_python(
            *(part.format(port) for part in command),
            folder=folder,
            environment=environment(folder) | {"DJANGO_SETTINGS_MODULE": "shop.settings"},
            log=log,
        )
    try:
        eventually(lambda: ask(f"{here}/joblog/live") is not None, timeout=60)
        status, headers, _ = ask(f"{here}/joblog/")
        assert (303, "/admin/login/?next=/joblog/") == (status, headers["location"])
        assert 301 == ask(f"{here}/joblog")[0]
        with ThreadPoolExecutor(8) as threads:
            asked = [f"{here}/joblog/", f"{here}/joblog/jobs", f"{here}/joblog/overview.json"] * 4
            answers = list(threads.map(lambda u: ask(u, Cookie=f"sessionid={session}"), asked))
        assert {200} == {status for status, _, _ in answers}
        assert "mira" in answers[0][2]
    finally:
        process.terminate()
        process.wait(timeout=30)


UNIQUE = """
import os
os.environ["DJANGO_SETTINGS_MODULE"] = "shop.other"
import django
django.setup()
from django.core.management import call_command
call_command("migrate", verbosity=0)
if os.environ.get("SHOP_TWO"):
    call_command("migrate", database="jobs", verbosity=0)
from django.test import Client
print(Client().get("/unique").content.decode())
"""


@pytest.mark.full
@pytest.mark.parametrize("two", ["", "1"], ids=["one", "two"])
def test_the_suite_of_another_project(project, folder, two):
    """A custom user model, ATOMIC_REQUESTS, no USE_TZ, and parallel tests all work."""
    (folder / "pytest.ini").write_text("[pytest]\n")
    parallel = ("-n2",) if two else ()
    command = ("-m", "pytest", "-q", *parallel, "-p", "no:cacheprovider", "--ds=shop.other")
    said = project(*command, "suite/other_suite.py", SHOP_TWO=two)
    assert "6 passed" in said


@pytest.mark.full
@pytest.mark.parametrize(("two", "has"), [("", "error"), ("1", "jid")], ids=["one", "two"])
def test_a_unique_job_in_a_transaction(project, two, has):
    """With the same SQLite file, the error names the transaction and the cure."""
    said = json.loads(project("-c", UNIQUE, SHOP_TWO=two))
    assert [has] == list(said)
    if has == "error":
        assert "transaction.on_commit()" in said[has]
