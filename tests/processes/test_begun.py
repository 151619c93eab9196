"""A job whose worker is killed during its body waits for its section, and finishes."""

from __future__ import annotations

import brokers
import dramatiq
import pytest

from dramatiq_joblog import JobLogMiddleware
from dramatiq_joblog.errors import DatabaseAwayError

pytestmark = pytest.mark.process


def suspended_and_overdue(joblog, process, jid):
    """Suspend a process outside of a SQLite transaction, and let its job's lease expire."""
    process.suspend()
    try:
        joblog.Lock.update(expires_at=joblog.now()).where(joblog.Lock.owner == jid).execute()
    except DatabaseAwayError:
        process.resume()
        return False
    return True


@pytest.mark.few(1)
@pytest.mark.parametrize("broker_url", ["redis", "rabbit"], indirect=True)
@pytest.mark.parametrize("policy", ["skip", "retry", "fail"])
def test_what_a_killed_worker_has_begun(
    joblog, database_url, broker_url, tmp_path, run_worker_process, eventually, policy
):
    """Its policy neither skips nor fails it, though another job holds the key."""
    broker = brokers.connect(broker_url, namespace="begun")
    broker.add_middleware(JobLogMiddleware(joblog))

    def send(name):
        message = dramatiq.Message("default", policy, (name,), {}, {})
        broker.enqueue(message)
        return message.message_id

    def ran():
        path = tmp_path / "runs"
        return path.read_text().split() if path.exists() else []

    def state(jid):
        return joblog.get(jid).state

    env = {
        "BEGUN_FOLDER": str(tmp_path),
        "BEGUN_DATABASE": database_url,
        "BEGUN_BROKER": broker_url,
    }
    broker.declare_queue("default")
    dies = "exited unexpectedly"
    with run_worker_process("begun_worker", env=env, expects_critical=dies) as victim:
        begun = send("begun")
        eventually(lambda: ran() == ["begun"], timeout=30)
        [child] = victim.workers
        # Its lease runs out, and another takes the key before the message comes again.
        eventually(lambda: suspended_and_overdue(joblog, child, begun))
        other = joblog.lock("key")
        other.__enter__()
        child.kill()
    with run_worker_process("begun_worker", env=env):
        eventually(lambda: state(begun) == "waiting", timeout=60)
        newcomer = send("newcomer")
        final = {"skip": "skipped", "retry": "dead", "fail": "dead"}[policy]
        eventually(lambda: state(newcomer) == final, timeout=30)
        assert "waiting" == state(begun)
        (tmp_path / "go-begun").touch()
        other.__exit__(None, None, None)
        eventually(lambda: state(begun) == "finished", timeout=30)
    broker.close()

    assert ["begun", "begun"] == ran()
    assert {"interrupted", "waited"} == {f.outcome for f in joblog.get(begun).failures}
