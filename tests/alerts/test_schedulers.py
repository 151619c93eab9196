"""What a scheduler sends is expected: each is tried for real, and missed when it ends."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import servers

MODULES = {"apscheduler": "apscheduler", "crontab": "dramatiq_crontab", "periodiq": "periodiq"}
SUPPORT = Path(__file__).parents[1] / "support"

pytestmark = [
    pytest.mark.full,
    pytest.mark.process,
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
    # What a rule finds is tried on each database elsewhere; a scheduler never sees it.
    pytest.mark.parametrize("database_url", ["sqlite"], indirect=True),
]


@pytest.fixture
def environment(database_url, redis_url):
    """Return what the scheduler and the workers are given."""
    return {"SCHEDULED_BROKER": redis_url, "SCHEDULED_DATABASE": database_url}


@pytest.fixture
def scheduling(environment, tmp_path):
    """Return a context manager that runs a scheduler, which ends by SIGTERM."""

    @contextlib.contextmanager
    def run(name):
        if importlib.util.find_spec(MODULES[name]) is None:
            pytest.skip(f"{name} is not installed")
        path = os.pathsep.join([str(SUPPORT), os.environ.get("PYTHONPATH", "")])
        with (tmp_path / f"{name}.log").open("wb") as log:
            process = servers.launch(
                [sys.executable, "scheduled.py", name],
                on_parent_death=signal.SIGKILL,
                cwd=SUPPORT,
                env=os.environ | environment | {"PYTHONPATH": path},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            yield
        finally:
            process.terminate()
            process.wait(timeout=30)

    return run


@pytest.mark.parametrize("name", ["apscheduler", "crontab"])
def test_a_scheduler_that_ends(
    joblog, name, scheduling, run_worker_process, environment, eventually
):
    """While it sends nothing is missed; once it is gone the job is, until it is back."""
    with run_worker_process("scheduled", env=environment) as workers:
        with scheduling(name):
            eventually(lambda: joblog.jobs.finished().of_type("tick").count() >= 8, 60)
            [state] = joblog.alerts
            assert not state.is_open
        eventually(lambda: [s.is_open for s in joblog.alerts] == [True], 40)
        eventually(lambda: workers.output.count("NOTICE opened") == 1, 20)
        # One that was on its way may have come meanwhile.
        eventually(lambda: "missed" in {problem.kind for problem in joblog.problems()}, 40)
        with scheduling(name):
            eventually(lambda: [s.is_open for s in joblog.alerts] == [False], 40)
        eventually(lambda: workers.output.count("NOTICE resolved") == 1, 20)


def test_periodiq(joblog, scheduling, run_worker_process, environment, eventually):
    """What periodiq sends is logged, finishes and counts; what comes too late it skips, by name."""
    with run_worker_process("scheduled", env=environment) as workers:
        # Nothing has come for longer than the rule allows.
        eventually(lambda: "NOTICE opened" in workers.output, 40)
        with scheduling("periodiq"):
            eventually(lambda: joblog.jobs.finished().of_type("tick").exists(), 90)
        eventually(lambda: "NOTICE resolved" in workers.output, 20)
        late = {"scheduled_at": "2020-01-01T00:00:00+00:00"}
        import brokers
        import dramatiq

        broker = brokers.connect(environment["SCHEDULED_BROKER"], namespace="scheduled")
        message = dramatiq.Message("default", "tick", (), {}, late)
        broker.declare_queue("default")
        broker.enqueue(message)
        job = joblog.wait(message.message_id, timeout=20_000)
        brokers.disconnect(broker)
    assert ("skipped", "PeriodiqMiddleware") == (job.state, job.skip_reason)
