"""Writes of a test to a real broker, or to another database, are refused."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from urllib.parse import urlsplit

import psycopg
import pytest

SHOP = """
import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq_joblog import JobLog, JobLogMiddleware

# Nobody listens there.
joblog = JobLog("postgresql://nobody@127.0.0.1:1/none")
broker = RedisBroker(url="redis://127.0.0.1:1")
broker.add_middleware(JobLogMiddleware(joblog))
dramatiq.set_broker(broker)

@dramatiq.actor
def work():
    pass
"""

LATE = """
import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker
from dramatiq_joblog import ConfigurationError, JobLogMiddleware

def test_an_application_that_is_imported_late(joblog_broker):
    import shop
    with pytest.raises(ConfigurationError, match="sent by a RedisBroker .* import the application"):
        shop.work.send()
    with pytest.raises(ConfigurationError, match="joblog_app_broker"):
        shop.work.send_with_options(delay=1000)

def test_a_broker_that_is_not_logged(joblog_broker):
    from dramatiq.brokers.redis import RedisBroker
    broker = RedisBroker(url="redis://127.0.0.1:1")
    actor = dramatiq.actor(lambda: None, actor_name="bare", broker=broker)
    with pytest.raises(ConfigurationError, match="sent by a RedisBroker"):
        actor.send()

def test_a_stub_broker_of_the_test_s_own(joblog, joblog_broker):
    broker = StubBroker()
    broker.add_middleware(JobLogMiddleware(joblog))
    actor = dramatiq.actor(lambda: None, actor_name="own", broker=broker)
    assert joblog.get(actor.send().message_id).state == "enqueued"

kept = []

def test_an_actor_that_is_declared_in_a_test(joblog_worker):
    kept.append(dramatiq.actor(lambda: None, actor_name="kept"))
    kept[0].send()
    assert len(joblog_worker.run()) == 1

def test_and_sends_in_the_next_one(joblog_worker):
    with pytest.raises(ConfigurationError, match="a test that has ended"):
        kept[0].send()

def test_and_in_one_without_fixtures():
    with pytest.raises(ConfigurationError, match="a test that has ended"):
        kept[0].send()

def test_all_is_put_back():
    import shop
    # It is asked no more, and tries.
    with pytest.raises(Exception, match="(?i)connect"):
        shop.work.send()
"""

SETTINGS = """
from pathlib import Path
SECRET_KEY = "only for this test"
DATABASES = {"default": DATABASE}
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes"]
USE_TZ = True
"""

DJANGO_SHOP = """
import dramatiq
from django.conf import settings
from dramatiq.brokers.stub import StubBroker
from dramatiq_joblog import Job, JobLog, JobLogMiddleware
from peewee import CharField, ForeignKeyField, Model

class User(Model):
    username = CharField()
    class Meta:
        table_name = "auth_user"

class ShopJob(Job):
    user = ForeignKeyField(User, backref="jobs", null=True)

joblog = JobLog(settings.LOG_URL, model=ShopJob)
User.bind(joblog.database)
broker = StubBroker()
broker.add_middleware(JobLogMiddleware(joblog))
dramatiq.set_broker(broker)

@dramatiq.actor(job_user="user_id")
def welcome(user_id):
    pass
"""

DJANGO_TESTS = """
import pytest
import shop
from django.contrib.auth.models import User
from django.db import connection
from dramatiq_joblog import ConfigurationError

def is_of_tests():
    return str(shop.joblog.database.database) == str(connection.settings_dict["NAME"])

def test_without_our_fixtures():
    with pytest.raises(ConfigurationError, match="not its test database"):
        shop.welcome.send(1)

@pytest.mark.django_db
def test_without_our_fixtures_in_the_test_database():
    with pytest.raises(ConfigurationError, match="ask for joblog_worker"):
        shop.welcome.send(1)

@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.django_db
def test_with_our_fixtures(joblog, joblog_worker, n):
    assert User.objects.count() == 0
    shop.welcome.send(None)
    [job] = joblog_worker.run()
    assert job.state == "finished" and list(job.lines) == list(job.failures) == []
    assert joblog is shop.joblog and joblog.jobs.count() == 1
    assert is_of_tests()

def test_our_fixtures_alone(joblog, joblog_worker):
    shop.welcome.send(None)
    [job] = joblog_worker.run()
    assert job.state == "finished" and joblog.jobs.count() == 1

def test_all_is_put_back():
    assert not is_of_tests()
    with pytest.raises(ConfigurationError):
        shop.welcome.send(1)
"""

MEMORY_TESTS = """
import pytest
import shop

@pytest.mark.django_db
def test_a_database_in_memory(request):
    with pytest.raises(Exception, match="in memory.*TEST.*NAME"):
        request.getfixturevalue("joblog_worker")
"""


UNMARKED_TESTS = """
import pytest
import shop

def test_without_a_mark(request):
    with pytest.raises(Exception, match="mark this test with pytest.mark.django_db"):
        request.getfixturevalue("joblog_worker")
"""

CHOSEN_TESTS = """
import pytest
import shop

@pytest.fixture(scope="session")
def django_db_setup():
    pass

@pytest.mark.django_db
def test_of_a_project_that_wants_it_so(joblog, joblog_worker):
    shop.welcome.send(None)
    [job] = joblog_worker.run()
    assert job.state == "finished"
"""


@pytest.fixture
def run_pytest(tmp_path, run_python):
    """Return a function that runs a separate pytest on files, and returns its output."""

    def run(passed, *options, **files):
        (tmp_path / "pytest.ini").write_text("[pytest]\n")
        for name, text in files.items():
            (tmp_path / f"{name}.py").write_text(text)
        # No random numbers of other processes in names.
        command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
        done = run_python(*command, environment=os.environ | {"PYTHONPATH": str(tmp_path)})
        assert f"{passed} passed" in done.stdout, done.stdout + done.stderr
        assert 0 == done.returncode

    return run


@pytest.mark.full
def test_another_broker(run_pytest):
    """A message for another broker than the test's is refused, with the cure, and not sent."""
    run_pytest(7, "-W", "error", shop=SHOP, test_shop=LATE)


def on_sqlite(folder, **test):
    """Return the settings of a project on a file."""
    dev = folder / "dev.sqlite3"
    database = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(dev)} | test
    return SETTINGS.replace("DATABASE}", f"{database!r}}}") + f"LOG_URL = 'sqlite:///{dev}'\n"


@pytest.mark.full
def test_django_on_sqlite(run_pytest, tmp_path):
    """Jobs and rows go to Django's test database, or nowhere."""
    pytest.importorskip("pytest_django")
    settings = on_sqlite(tmp_path, TEST={"NAME": str(tmp_path / "test.sqlite3")})
    files = {"site_settings": settings, "shop": DJANGO_SHOP}

    run_pytest(6, "--ds=site_settings", **files, test_shop=DJANGO_TESTS)

    assert not _tables(tmp_path / "dev.sqlite3")


@pytest.mark.full
@pytest.mark.parametrize(
    "tests",
    [
        pytest.param(MEMORY_TESTS, id="memory"),
        pytest.param(UNMARKED_TESTS, id="unmarked"),
    ],
)
def test_django_without_a_test_database_for_the_log(run_pytest, tmp_path, tests):
    """A test database that is unreachable, or was not created, is refused with the cure."""
    pytest.importorskip("pytest_django")
    files = {"site_settings": on_sqlite(tmp_path), "shop": DJANGO_SHOP}

    run_pytest(1, "--ds=site_settings", **files, test_shop=tests)

    assert not _tables(tmp_path / "dev.sqlite3")


@pytest.mark.full
def test_django_with_the_database_that_is_there(run_pytest, tmp_path):
    """A project may make its tests use the existing database with its own fixture."""
    pytest.importorskip("pytest_django")
    files = {"site_settings": on_sqlite(tmp_path), "shop": DJANGO_SHOP}

    run_pytest(1, "--ds=site_settings", **files, test_shop=CHOSEN_TESTS)

    assert _tables(tmp_path / "dev.sqlite3")


@pytest.mark.full
def test_django_on_postgresql(run_pytest, postgres_url):
    """The same on a server, with a different notation of the address in the log's URL."""
    pytest.importorskip("pytest_django")
    parts = urlsplit(postgres_url)
    database = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parts.path.strip("/"),
        "HOST": parts.hostname or "",
        "PORT": parts.port or "",
        "USER": parts.username or "",
        "PASSWORD": parts.password or "",
    }
    url = postgres_url.replace("127.0.0.1", "localhost").replace("postgresql://", "postgres://")
    settings = SETTINGS.replace("DATABASE}", f"{database!r}}}") + f"LOG_URL = {url!r}\n"

    files = {"site_settings": settings, "shop": DJANGO_SHOP}

    run_pytest(6, "--ds=site_settings", **files, test_shop=DJANGO_TESTS)

    with psycopg.connect(postgres_url) as connection:
        found = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        assert [] == found.fetchall()


def _tables(path):
    if not path.exists():
        return []
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT name FROM sqlite_master").fetchall()
