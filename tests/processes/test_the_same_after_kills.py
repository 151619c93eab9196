"""A log changes no behaviour, even if workers are killed by SIGKILL."""

from __future__ import annotations

import threading
from collections import Counter

import brokers
import pytest
from dramatiq.brokers.redis import RedisBroker
from same_worker import Program, Stage

from dramatiq_joblog import JobLog
from dramatiq_joblog.states import FINAL

pytestmark = [
    pytest.mark.process,
    pytest.mark.parametrize("database_url", ["sqlite"], indirect=True),
]

PROGRAMS = {
    "in_the_body": Program({"a": ["works"], "b": ["works"]}, {"a": ("in_the_body", 0)}, {}),
    "in_a_retry": Program({"a": ["raises", "works"]}, {"a": ("in_the_body", 1)}, {}),
    "of_a_delayed_one": Program({"a": ["works"]}, {"a": ("in_the_body", 0)}, {}, "delayed"),
    "once_it_was_put_back": Program({"a": ["works"]}, {"a": ("in_the_body", 0)}, {"a": "at_once"}),
    "once_it_was_delayed": Program({"a": ["works"]}, {"a": ("in_the_body", 0)}, {"a": "delayed"}),
    "once_its_retry_was_sent": Program(
        {"a": ["raises", "works"]}, {"a": ("before_the_ack", 0)}, {}
    ),
    "once_its_last_run_failed": Program(
        {"a": ["raises"]}, {"a": ("before_the_ack", 0)}, {}, max_retries=0
    ),
    "after_the_body": Program({"a": ["works"], "b": ["skips"]}, {"a": ("after_the_body", 0)}, {}),
    "before_the_ack": Program({"a": ["works"]}, {"a": ("before_the_ack", 0)}, {}),
    "of_one_sent_twice": Program({"a": ["works"]}, {"a": ("in_the_body", 0)}, {}, "twice"),
    "in_a_group": Program(
        {"a": ["works"], "b": ["asks_for_a_retry", "works"]},
        {"a": ("in_the_body", 0), "b": ("in_the_body", 1)},
        {},
        "group",
    ),
    "in_a_pipeline": Program(
        {"a": ["works"], "b": ["works"]}, {"b": ("in_the_body", 0)}, {}, "pipeline"
    ),
}


@pytest.fixture
def run(run_worker_process, eventually, tmp_path):
    """Return a function that runs a program to its end, however often its worker is killed."""

    def settled(stage, runs):
        """Return whether nothing is left to run, and nothing has run for half a second."""
        if isinstance(stage.broker, RedisBroker):
            left = stage.broker.do_qsize("default")
        else:
            left = sum(stage.broker.get_queue_message_counts("default")[:2])
        before = runs()
        threading.Event().wait(0.5)
        return not left and before and before == runs()

    def to_the_end(program, url, database):
        folder = tmp_path / ("logged" if database else "bare")
        folder.mkdir()
        environment = program.as_environment(folder, url, database)
        stage = Stage(environment)
        messages = stage.send()
        lines = folder / "runs"

        def runs():
            return lines.read_text().split("\n")[:-1] if lines.exists() else []

        for key in program.dies:
            ready = folder / f"ready-{key}"
            with run_worker_process(
                "same_worker",
                threads=1,
                env=environment | {"SAME_READY": str(ready)},
                expects_critical="exited unexpectedly",
            ) as process:
                ready.touch()
                eventually(lambda process=process: process.process.poll() is not None, timeout=30)
        with run_worker_process("same_worker", threads=1, env=environment):
            eventually(lambda: settled(stage, runs), timeout=40)
        if stage.joblog is not None:
            stage.joblog.close()
        brokers.disconnect(stage.broker)
        assert len(program.dies) == len(list(folder.glob("died-*")))
        return Counter(runs()), messages

    return to_the_end


def check_row(job, runs):
    """Its row is that of an ended job, and each of its runs is recorded."""
    assert job.state in FINAL
    kept = [failure for failure in job.failures if failure.started_at is not None]
    own = {failure.token for failure in kept}
    assert runs == len(kept) + (job.token not in own)
    assert any(failure.outcome == "interrupted" for failure in kept)


@pytest.mark.parametrize("broker_url", ["redis", "rabbit"], indirect=True)
@pytest.mark.parametrize(
    "program",
    [
        pytest.param(program, id=name, marks=() if name == "in_the_body" else pytest.mark.full)
        for name, program in PROGRAMS.items()
    ],
)
def test_the_same_runs(database_url, broker_url, run, program):
    """With killed workers, every message runs as often with a log as without."""
    bare, _ = run(program, broker_url, None)
    joblog = JobLog(database_url)
    joblog.create_tables()
    logged, messages = run(program, broker_url, database_url)
    assert bare == logged
    for message in messages:
        if message.args[0] in program.dies:
            of_it = {k: n for k, n in logged.items() if k.split()[0] == message.args[0]}
            check_row(joblog.get(message.message_id), sum(of_it.values()))
    joblog.close()
