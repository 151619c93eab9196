"""The fixtures work as documented, and the guards can fail a test."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import dramatiq
import pytest
from dramatiq.middleware import Retries
from dramatiq.middleware.time_limit import _CtypesTimeoutManager

from dramatiq_joblog import JobLogMiddleware

ROOT = Path(__file__).parents[2]
SUPPORT = Path(__file__).parent

GUARDED = """
import dramatiq, pytest
from dramatiq.middleware import Middleware

class Faulty(Middleware):
    def after_enqueue(self, broker, message, delay):
        raise RuntimeError("the middleware broke")

def send_one():
    broker = dramatiq.get_broker()
    broker.add_middleware(Faulty())
    dramatiq.actor(print, actor_name="work").send()

def test_swallowed():
    "A fault happens."
    send_one()

@pytest.mark.expects_critical
def test_expected():
    "A fault is expected, and happens."
    send_one()

@pytest.mark.expects_critical
def test_missing():
    "A fault is expected, and does not happen."

@pytest.fixture
def no_server():
    pytest.skip("there is no server")

@pytest.mark.expects_critical
def test_without_its_server(no_server):
    "A fault is expected on a server that is not here."

@pytest.mark.expects_critical
def test_skips_itself():
    "A fault is expected, and the test finds that it cannot run."
    pytest.skip("there is no server")

@pytest.mark.expects_critical
def test_fails():
    "A fault is expected, and another one comes first."
    assert False
"""

CLEAN = """
import os

def test_it(sqlite_url):
    "The environment is clean."
    assert "JOBLOG_DATABASE" not in os.environ
"""


@pytest.fixture
def run_pytest(tmp_path):
    """Return a function that runs a test module under this suite's configuration."""

    def run(source, **env):
        module = tmp_path / "test_inner.py"
        module.write_text(source)
        configuration = ["-c", str(ROOT / "pyproject.toml"), "-p", "conftest"]
        without = {"CI", "PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER"}
        kept = {name: value for name, value in os.environ.items() if name not in without}
        return subprocess.run(
            [sys.executable, "-m", "pytest", *configuration, "-p", "no:cacheprovider", module],
            cwd=ROOT,
            env=kept | {"PYTHONPATH": f"{ROOT}/tests:{ROOT}/tests/support"} | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        ).stdout

    return run


@pytest.mark.full
def test_a_swallowed_fault_fails_its_test(run_pytest):
    """An error that Dramatiq swallows fails its test; an expected one must occur.

    A test that is skipped or fails need not reach its expected error.
    """
    output = run_pytest(GUARDED)

    assert "1 failed, 3 passed, 2 skipped, 2 errors" in output
    assert "ERROR at teardown of test_swallowed" in output
    assert "Unexpected failure in after_enqueue" in output
    assert "RuntimeError: the middleware broke" in output
    assert "ERROR at teardown of test_missing" in output
    assert "nothing CRITICAL was logged" in output


@pytest.mark.full
def test_a_missing_server_skips_and_fails_in_ci(run_pytest):
    """Without a server, a test is skipped with the reason, and fails if CI is set."""
    source = "def test_it(redis_url): 'It needs Redis.'\n"
    nowhere = "redis://127.0.0.1:1"

    local, ci = (run_pytest(source, REDIS_URL=nowhere, CI=ci) for ci in ("", "1"))

    assert "1 skipped" in local
    assert f"no Redis: REDIS_URL={nowhere} does not answer" in local
    assert "1 error" in ci
    assert f"CI is set and REDIS_URL={nowhere} does not answer" in ci


@pytest.mark.full
def test_the_surroundings_are_told_and_kept_out(run_pytest):
    """A test does not see our environment variables; the summary says which backends ran."""
    output = run_pytest(CLEAN, JOBLOG_DATABASE="sqlite:///mine.db")

    assert "1 passed in" in output
    assert "; SQLite 3." in output
    assert "no PostgreSQL: no test of this run asked for it" in output


@pytest.mark.parametrize("again", [1, 2])
def test_the_global_broker_is_fresh(again):
    """Each test has a global broker without actors."""
    assert not dramatiq.get_broker().actors

    dramatiq.actor(print, actor_name="work")


@pytest.mark.parametrize("again", [1, 2])
def test_time_limits_are_watched_for_one_test(make_broker, joblog, eventually, again):
    """The thread of a broker's time limits ends soon after its test."""
    make_broker(joblog=joblog)

    eventually(
        lambda: 1 == sum(isinstance(t, _CtypesTimeoutManager) for t in threading.enumerate())
    )


@pytest.mark.parametrize("position", ["first", "last", "before_retries"])
def test_the_log_stands_where_it_is_put(make_broker, joblog, position):
    """The log's middleware is first, last, or just before Retries."""
    kinds = [type(m) for m in make_broker(position=position, joblog=joblog).middleware]

    place = kinds.index(JobLogMiddleware)
    neighbour = kinds.index(Retries) - 1
    assert place == {"first": 0, "last": len(kinds) - 1, "before_retries": neighbour}[position]


@pytest.mark.parametrize("kind", ["stub", "redis", "rabbit"])
def test_a_worker_runs_what_is_sent(make_broker, joblog, worker, eventually, kind):
    """A worker runs the actors of its broker, on each kind of broker."""
    broker = make_broker(kind, joblog=joblog)
    done = []

    @dramatiq.actor
    def work(value):
        done.append(value)

    work.send(7)
    with worker(broker):
        eventually(lambda: done)

    assert done == [7]


def test_a_made_job_has_what_the_test_names(job_factory, joblog):
    """A row from the factory is finished, except for the values that the test gives."""
    job = job_factory(state="dead", actor="import_prices")

    assert (job.state, job.actor, job.attempt) == ("dead", "import_prices", 1)
    assert joblog.jobs.dead().count() == 1


def test_eventually_gives_up(eventually):
    """A wait fails at its timeout."""
    with pytest.raises(pytest.fail.Exception, match="was still 0 after"):
        eventually(lambda: 0, timeout=0.1)


@pytest.mark.full
def test_a_prepared_process_has_imported_the_package(tmp_path):
    """A command of a prepared process does not import the package again."""
    code = """if True:
        import sys, prepared
        prepared.import_all("dramatiq")
        before = set(sys.modules)
        from dramatiq_joblog import *
        import brokers, playhouse, psycopg, pymysql
        print(sorted(set(sys.modules) - before))
    """
    path = os.pathsep.join(map(str, (SUPPORT, ROOT)))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"


@pytest.mark.process
def test_a_worker_process_runs_until_the_end(run_worker_process):
    """A worker process is ready inside the context, and ends with all its child processes."""
    with run_worker_process("faulty_worker", processes=2, threads=1) as running:
        workers = running.workers
        assert len(workers) == 2
        assert all(process.is_running() for process in workers)

    assert running.process.returncode == 0
    assert not any(process.is_running() for process in workers)


@pytest.mark.process
def test_a_fault_in_a_worker_process_fails(run_worker_process):
    """A swallowed error in a worker process fails the test, unless it is expected."""
    with (
        pytest.raises(pytest.fail.Exception, match="Unexpected failure in after_process_boot"),
        run_worker_process("faulty_worker", threads=1, env={"FAULT": "1"}),
    ):
        pass

    with run_worker_process(
        "faulty_worker", threads=1, env={"FAULT": "1"}, expects_critical="after_process_boot"
    ) as running:
        assert "the middleware broke" in running.output


@pytest.mark.process
def test_a_worker_process_that_cannot_start_fails(run_worker_process):
    """A module that cannot be imported fails the test with what was printed."""
    with (
        pytest.raises(pytest.fail.Exception, match="No module named 'no_such_module'"),
        run_worker_process("no_such_module"),
    ):
        pass
