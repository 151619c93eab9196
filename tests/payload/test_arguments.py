"""How arguments are stored and restored."""

from __future__ import annotations

import dramatiq
import pytest
from cryptography.fernet import Fernet

from dramatiq_joblog import JobLog, RequeueError


@pytest.fixture(params=[False, True], ids=["unsealed", "sealed"])
def log(request, sqlite_database):
    """Return a log without a key and one with a key."""
    log = JobLog(sqlite_database, seal_key=Fernet.generate_key() if request.param else None)
    yield log
    log.close()


@pytest.fixture
def broker(log, make_broker):
    """Return a broker with the log."""
    return make_broker("stub", "last", joblog=log)


@pytest.fixture
def actors(broker):
    """Return two actors, of a pipeline."""

    @dramatiq.actor(max_retries=0)
    def first(name, password="none"):
        raise ValueError("it is broken")

    @dramatiq.actor
    def second(api_key, name):
        pass

    return first, second


def send(actors, how):
    """Send a message that holds a secret; return it."""
    first, second = actors
    if how == "args":
        return first.send("ada", "hunter2")
    if how == "kwargs":
        return first.send("ada", password="hunter2")
    if how == "pipe":
        return (first.message("ada") | second.message("hunter2")).run().messages[0]
    if how == "callback":
        callback = second.message("hunter2", "ada").asdict()
        return first.send_with_options(args=("ada",), group_completion_callbacks=[callback])
    return first.send_with_options(args=("ada",), access_token="hunter2")


@pytest.mark.parametrize("how", ["args", "kwargs", "pipe", "callback", "option"])
def test_a_secret_is_not_kept_and_runs_again_by_its_key_only(log, broker, worker, actors, how):
    """It is in no column; a new run of its job has it if it was encrypted, else it is refused."""
    message = send(actors, how)
    with worker(broker):
        broker.join("default", fail_fast=False)
    job = log.get(message.message_id)
    log.release()

    assert "hunter2" not in repr(job.__data__)
    if log.core.seal is None:
        with pytest.raises(RequeueError, match=r"without their secrets; JobLog\(seal_key=...\)"):
            log.requeue(job.jid)
        return
    again = log.requeue(job.jid)
    assert message.args == again.args
    assert message.kwargs == again.kwargs
    assert "hunter2" in repr(again)


def test_nothing_is_kept_beside_what_is_shown(log, broker, worker, actors):
    """For a message without secrets and options, nothing else is stored."""
    message = actors[0].send("ada")
    with worker(broker):
        broker.join("default", fail_fast=False)
    job = log.get(message.message_id)

    assert (["ada"], {}) == (job.args, job.kwargs)
    assert (None, None, None) == (job.options, job.withheld, job.sealed)
