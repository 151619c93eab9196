"""The pytest plugin for users' tests, in a separate pytest."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker

from dramatiq_joblog import JobLogMiddleware
from dramatiq_joblog.recording import inbox
from dramatiq_joblog.testing.broker import JobLogWorker
from dramatiq_joblog.testing.fixtures import broker_of_test

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
INSIDE = (ROOT / "docs" / "inside.md").read_text()
FILE = re.compile(r'^```python title="([^"]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)

SHOP = """
import logging

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import AsyncIO, CurrentMessage, Middleware
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend
from dramatiq_joblog import Exclusive, JobLog, JobLogMiddleware, current_job

class Counting(Middleware):
    count = 0
    def after_process_message(self, broker, message, *, result=None, exception=None):
        Counting.count += 1

# Nobody listens there.
joblog = JobLog("postgresql://nobody@127.0.0.1:1/none", job_types=["import"])
broker = RedisBroker(url="redis://127.0.0.1:1")
results = Results(backend=RedisBackend(url="redis://127.0.0.1:1"))
for middleware in (AsyncIO(), CurrentMessage(), Counting(), results):
    broker.add_middleware(middleware)
broker.add_middleware(JobLogMiddleware(joblog, lines="INFO"))
dramatiq.set_broker(broker)

options = {"job_type": "import", "job_user": "user_id", "exclusive": "user:{user_id}"}

@dramatiq.actor(**options, max_retries=3, store_results=True)
def work(user_id, breaks=0):
    logging.getLogger("shop").info("attempt %d", current_job().attempt)
    # Its own log is that of the test.
    assert joblog.get(current_job().jid).state == "started"
    if current_job().attempt <= breaks:
        raise ValueError("broken")
    return user_id

@dramatiq.actor
async def greet(name):
    work.send_with_options(args=(name,), delay=3_600_000)

@dramatiq.actor(log_job=False)
def unlogged():
    pass

@dramatiq.actor
def again():
    again.send_with_options(delay=1000)
"""

TESTS = """
import dramatiq
import pytest
import shop
from dramatiq_joblog import ConfigurationError, JobLogError
from shop import again, greet, unlogged, work

@pytest.mark.parametrize("n", [1, 2])
def test_each_test_has_its_own_log(joblog, joblog_worker, n):
    message = work.send(7, breaks=2)
    assert joblog.get(message.message_id).state == "enqueued"
    rows = joblog_worker.run()
    [row] = rows
    assert (row.jid, row.state, row.attempt) == (message.message_id, "finished", 3)
    assert row.user_id == 7
    assert ["retried"] * 2 == [f.outcome for f in rows[0].failures]
    assert ["attempt 1", "attempt 2", "attempt 3"] == [line.text for line in rows[0].lines]
    assert joblog is shop.joblog
    assert joblog.jobs.count() == 1
    assert message.get_result() == 7
    assert shop.Counting.count >= 3

def test_an_hour_is_nothing(joblog_worker):
    greet.send("ada")
    parent, child = joblog_worker.run()
    assert (parent.actor, child.actor, child.parent) == ("greet", "work", parent)
    assert child.state == "finished"
    work.send(8)
    [next_one] = joblog_worker.run(threads=4)
    assert next_one.user_id == 8

def test_order_of_delays(joblog, joblog_worker):
    late = work.send_with_options(args=(1,), delay=60_000)
    early = work.send_with_options(args=(2,), delay=1_000)
    assert [r.jid for r in joblog_worker.run()] == [late.message_id, early.message_id]
    by_start = joblog.jobs.order_by(joblog.Job.started_at, joblog.Job.updated_at)
    assert joblog.get(early.message_id).started_at <= joblog.get(late.message_id).started_at

def test_a_taken_section(joblog, joblog_worker):
    with joblog.lock("user:7"):
        work.send(7)
        [job] = joblog_worker.run()
    assert job.state == "skipped"

def test_no_row(joblog_worker):
    unlogged.send()
    assert joblog_worker.run() == []

def test_no_end(joblog_worker):
    again.send()
    with pytest.raises(JobLogError, match="do not end: 20 retries"):
        joblog_worker.run(limit=20)

def test_run_again(joblog, joblog_worker):
    message = work.send(7)
    joblog_worker.run()
    new = joblog.requeue(message.message_id)
    [job] = joblog_worker.run()
    assert job.replay_of == message.message_id

def test_settings_are_kept(joblog_broker):
    with pytest.raises(ConfigurationError, match="unknown job_type"):
        work.send_with_options(args=(7,), job_type="imprt")
    assert dramatiq.get_broker() is joblog_broker is work.broker

def test_all_is_put_back():
    assert dramatiq.get_broker() is shop.broker is work.broker
    assert "none" in str(shop.joblog.database.database)
"""

OWN_MODEL = """
import dramatiq
from dramatiq.brokers.stub import StubBroker
from dramatiq_joblog import Job, JobLog, JobLogMiddleware
from peewee import CharField, ForeignKeyField, Model, SqliteDatabase

database = SqliteDatabase("shop.db")

class User(Model):
    name = CharField()
    class Meta:
        database = database

class ShopJob(Job):
    user = ForeignKeyField(User, backref="jobs", null=True)

broker = StubBroker()
broker.add_middleware(JobLogMiddleware(JobLog(database, model=ShopJob)))

@dramatiq.actor(broker=broker, job_user="user_id")
def work(user_id):
    pass
"""

OWN_MODEL_TESTS = """
import pytest
import shop

@pytest.fixture
def joblog_app_broker():
    return shop.broker

def test_own_model(joblog_worker):
    shop.database.create_tables([shop.User])
    ada = shop.User.create(name="Ada")
    shop.work.send(ada.id)
    [job] = joblog_worker.run()
    assert job.user == ada and [job] == list(ada.jobs)
"""

ALONE = """
import dramatiq

def test_without_any_setup(joblog, joblog_worker):
    @dramatiq.actor(job_type="import")
    def work():
        pass
    work.send()
    [job] = joblog_worker.run()
    assert (job.state, job.job_type) == ("finished", "import")
    assert joblog.jobs.finished().count() == 1
"""


@pytest.fixture
def run_pytest(tmp_path, run_python):
    """Return a function that runs a separate pytest on a separate project."""

    def run(*, shop="", tests, passed):
        (tmp_path / "pytest.ini").write_text("[pytest]\n")
        (tmp_path / "shop.py").write_text(shop)
        (tmp_path / "test_shop.py").write_text(tests)
        done = run_python("-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider")
        assert f"{passed} passed" in done.stdout, done.stdout + done.stderr
        assert 0 == done.returncode

    return run


@pytest.mark.full
def test_the_readme_s_example(run_pytest):
    """The README's test passes for the README's actors, without a server."""
    shop = next(block for block in BLOCKS if "def reconcile" in block)
    [tests] = [block for block in BLOCKS if block.startswith("def test_")]
    run_pytest(shop=shop, tests=f"from shop import reconcile\n\n{tests}", passed=1)


@pytest.mark.full
def test_the_project_of_the_documents(run_pytest):
    """The project of docs/inside.md passes its tests."""
    files = dict(FILE.findall(INSIDE))
    run_pytest(shop=files["shop.py"], tests=files["test_shop.py"], passed=2)


@pytest.mark.full
def test_a_project_with_everything(run_pytest):
    """Missing servers are not needed, nothing waits, and everything is restored."""
    run_pytest(shop=SHOP, tests=TESTS, passed=10)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"acks": "plain"}, {"acks": "plain"}),
        ({"acks": "handed"}, {"acks": "auto"}),
        ({"heartbeat": 700, "heartbeat_timeout": 7_000}, None),
        ({"lines": False}, None),
        ({"outcome_log": True}, None),
        ({"start": "soon"}, None),
    ],
    ids=lambda settings: ",".join(settings or ""),
)
def test_settings_of_the_middleware(joblog, given, kept):
    """The broker of a test has the settings of the application's middleware."""
    app = StubBroker(middleware=[])
    app.add_middleware(JobLogMiddleware(joblog, **given))
    with broker_of_test(joblog, app) as broker:
        (moved,) = [m for m in broker.middleware if isinstance(m, JobLogMiddleware)]
        usual = JobLogMiddleware(joblog).settings
        assert usual | (kept or given) == moved.settings

        # Whatever the settings, a worker runs on it.
        @dramatiq.actor
        def work():
            pass

        work.send()
        (job,) = JobLogWorker(joblog, broker).run()
        assert job.state == "finished"


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_starts_are_written_soon(joblog, monkeypatch):
    """With ``start="soon"``, the start of a short job is not written before its body in tests."""
    # No job of a test is that long.
    monkeypatch.setattr(inbox, "SOON", 3_600_000)
    app = StubBroker(middleware=[])
    app.add_middleware(JobLogMiddleware(joblog, start="soon"))
    states = []
    with broker_of_test(joblog, app) as broker:

        @dramatiq.actor
        def work():
            # Not by the log's own model, which would write the start.
            rows = joblog.database.execute_sql("SELECT state FROM joblog_job").fetchall()
            states.append("started" if ("started",) in rows else "not yet")

        work.send()
        JobLogWorker(joblog, broker).run()
    assert ["not yet"] == states


@pytest.mark.full
def test_a_model_of_the_user_s_own(run_pytest):
    """A log with a custom model stays on its database; its broker may be named."""
    run_pytest(shop=OWN_MODEL, tests=OWN_MODEL_TESTS, passed=1)


@pytest.mark.full
def test_a_project_with_nothing(run_pytest):
    """Without its own broker, a test may declare its actors on the plugin's."""
    run_pytest(tests=ALONE, passed=1)


def test_pytest_is_not_imported_by_the_package():
    """The package itself does not need pytest."""
    code = "import sys, dramatiq_joblog; sys.exit('pytest' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_pytest_starts_without_the_log():
    """Projects that share an environment with the log do not wait for it when pytest starts."""
    probe = "import sys, dramatiq_joblog.testing; print({'dramatiq', 'peewee'} & {*sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout == "set()\n"
