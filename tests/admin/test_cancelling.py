"""Jobs that are cancelled: what becomes of their rows, of what they hold, and of their messages."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import dramatiq
import pytest
import tiers
from dramatiq.brokers.redis import RedisBroker
from dramatiq.common import xq_name
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dramatiq_joblog import CancelError, DuplicateJob, Exclusive, JobNotFound, Unique, enqueue_once
from dramatiq_joblog.locking.leases import Claim
from dramatiq_joblog.locking.needs import SECTION
from dramatiq_joblog.recording.events import Ended, Enqueued, Started
from dramatiq_joblog.recording.heartbeat import Heartbeat
from dramatiq_joblog.states import CANCELLABLE, FINAL

NOW = 1_800_000_000_000


def event(kind, state, token, attempt=1, **columns):
    """Return an event of the job ``j``."""
    times = dict.fromkeys(("created_at", "updated_at", "enqueued_at", "started_at"), NOW)
    row = {"jid": "j", "actor": "work", "queue": "default", "state": state, "attempt": attempt}
    ends = {"finished_at": NOW + 5} if state in FINAL else {}
    return kind({**row, "token": token, **times, **ends, **columns})


def start(token, **options):
    return event(Started, "started", token, **options)


def told(joblog, jid="j"):
    job = joblog.get(jid)
    return str(job.state), job.dead_reason, [str(f.outcome) for f in job.failures]


CANCELLED = ("dead", "cancelled", [])

# The row


@pytest.mark.parametrize("state", CANCELLABLE)
def test_a_job_that_does_not_run_is_given_up(joblog, job_factory, make_broker, state):
    """It becomes dead, with an audit record, and can then be treated like any dead job."""
    make_broker("stub", joblog=joblog)

    @dramatiq.actor
    def work():
        """Do nothing."""

    job_factory(jid="j", state=state, finished_at=None, eta=NOW, args=[], kwargs={})

    job = joblog.cancel("j", who="ada", reason="Redis was flushed")

    assert ("dead", "cancelled", None) == (job.state, job.dead_reason, job.eta)
    assert abs(joblog.now() - job.finished_at).total_seconds() < 60
    assert job.updated_at == job.finished_at
    [action] = joblog.actions
    assert ("cancel", "ada", "j", f"was {state}: Redis was flushed") == (
        *(action.what, action.who, action.jid, action.detail),
    )
    assert ["j"] == joblog.dismiss("j", who="ada")
    assert joblog.requeue("j").message_id == joblog.get("j").replayed_by
    assert {"dead": 1} == {**joblog.prune({"dead": 0}, dry_run=True)}
    joblog.release()


@pytest.mark.parametrize("state", ["started", *sorted(FINAL)])
def test_what_runs_or_has_ended_is_refused(joblog, job_factory, state):
    """The error has the reason, and nothing is changed or recorded."""
    was = job_factory(jid="j", state=state).as_dict()
    reason = {"started": "it is started, and the log cannot stop code that runs; dramatiq-abort"}

    with pytest.raises(CancelError, match=reason.get(state, f"it is {state} already")) as caught:
        joblog.cancel("j")

    assert "j" == caught.value.jid
    assert was == joblog.get("j").as_dict()
    assert not joblog.actions.exists()


def test_an_unknown_job(joblog):
    """What the log does not know cannot be cancelled."""
    with pytest.raises(JobNotFound):
        joblog.cancel("nobody")
    joblog.release()


def test_a_run_whose_process_is_gone(joblog, job_factory):
    """A started job is cancelled if its process ended or is not known, and nobody marks it lost."""
    heartbeat = Heartbeat(joblog.core.tables, timeout=30_000)
    heartbeat.beat()
    job_factory(jid="j", state="started", process=heartbeat.process, token="t", finished_at=None)
    job_factory(jid="orphan", state="started", process="forgotten", token="t", finished_at=None)
    with pytest.raises(CancelError, match="it is started"):
        joblog.cancel("j")

    heartbeat.end()
    for jid in ("j", "orphan"):
        joblog.cancel(jid)
        assert ("dead", "cancelled", ["interrupted"]) == told(joblog, jid)


@pytest.mark.parametrize("section", [None, Exclusive("s")], ids=["plain", "in a section"])
def test_a_job_that_begins_meanwhile(joblog, section):
    """Of a start and a cancellation at the same time, exactly one succeeds."""
    both = threading.Barrier(2)

    def begin(jid):
        row = start("t").row | {"jid": jid, "process": None}
        starts = Started(row, section=section and asdict(section) | {"key": jid})
        both.wait(10)
        return joblog.core.writer.write(starts).granted

    with ThreadPoolExecutor(1) as pool:
        for jid in map(str, range(20)):
            sent = {"jid": jid, "state": "enqueued", "token": None}
            joblog.core.writer.write(Enqueued(start("t").row | sent))
            begun = pool.submit(begin, jid)
            both.wait(10)
            refused = ""
            try:
                joblog.cancel(jid)
            except CancelError as e:
                refused = e.reason
            assert begun.result(30) == ("it is started" in refused)
            assert ("started" if refused else "dead") == joblog.get(jid).state
            assert bool(refused and section) == joblog.locks.where(joblog.Lock.key == jid).exists()


@settings(
    max_examples=tiers.examples(60),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_nothing_begins_after_it(joblog, data):
    """Late, repeated and reordered events: no run begins, and only an end is recorded."""
    joblog.Job.delete().execute()
    joblog.Failure.delete().execute()
    last = data.draw(st.sampled_from(["finished", "dead", "skipped"]))
    life = [
        *(start("a"), event(Ended, "retrying", "a", eta=NOW)),
        *(start("b", attempt=2), event(Ended, last, "b", attempt=2)),
    ]
    order = data.draw(st.permutations(life + data.draw(st.lists(st.sampled_from(life)))))
    at = data.draw(st.integers(0, len(order)))
    joblog.core.transitions.write([event(Enqueued, "enqueued", None, started_at=None)])

    for each in order[:at]:
        joblog.core.transitions.write([dataclasses.replace(each, row=dict(each.row))])
    joblog.Job.update(state="lost").where(joblog.Job.state == "started").execute()
    try:
        joblog.cancel("j")
    except CancelError:
        assert joblog.get("j").state in FINAL
        return
    for each in order[at:]:
        again = dataclasses.replace(each, row=dict(each.row))
        answers = joblog.core.transitions.write([again])
        if again.row["state"] == last:
            assert (last, None) == told(joblog)[:2]
            return
        assert isinstance(again, Ended) or not answers["j"].granted
        assert ("dead", "cancelled") == told(joblog)[:2]


def test_jobs_of_a_query(joblog, job_factory):
    """All that a query finds and that do not run are cancelled, the oldest first, up to a limit."""
    for jid, state in {"a": "lost", "b": "started", "c": "lost", "d": "lost"}.items():
        job_factory(jid=jid, state=state, finished_at=None)
    seen = []

    done = joblog.cancel_all(
        joblog.jobs, limit=2, who="ada", progress=lambda *numbers: seen.append(numbers)
    )

    assert (["a", "c"], {}) == (done.cancelled, done.refused)
    assert [(1, 2), (2, 2)] == seen
    assert ["lost", "started"] == sorted(joblog.get(jid).state for jid in "bd")
    assert {"ada"} == {action.who for action in joblog.actions}


# What it holds


@pytest.mark.parametrize(("state", "kept"), [("retrying", True), ("lost", False)])
def test_its_section_is_free(joblog, job_factory, state, kept):
    """The keys that a job holds between runs, or from a dead worker, are released."""
    locks = joblog.core.locks
    taken = joblog.core.writer.call(lambda: locks.take(Claim(SECTION, "s", "j", "t", 60_000)))
    joblog.core.writer.call(lambda: kept and locks.keep("s", "j", "t", 60_000))
    joblog.core.writer.call(lambda: locks.take(Claim(SECTION, "s", "other", "u", 60_000, limit=2)))
    job_factory(jid="j", state=state, section="s", token="t", finished_at=None)
    assert ["j", "other"] == sorted(lock.owner for lock in joblog.locks)

    joblog.cancel("j")

    assert ["other"] == [lock.owner for lock in joblog.locks]
    with joblog.lock("s", limit=2) as lease:
        assert lease.fence > taken.fence
    assert ("dead", "cancelled", ["interrupted"] if state == "lost" else []) == told(joblog)


def test_it_waits_no_longer(joblog, job_factory):
    """A cancelled waiter leaves the wait queue, and its waiting time is stored."""
    for jid, since in (("j", NOW), ("k", NOW + 1)):
        job_factory(jid=jid, state="waiting", section="s", waiting_since=since, finished_at=None)

    job = joblog.cancel("j")

    assert ["k"] == [waiter.jid for waiter in joblog.waiters("s")]
    [waited] = job.failures
    assert ("waited", NOW) == (waited.outcome, waited.started_at.timestamp() * 1000)
    assert (None, "s") == (job.waiting_since, job.section)


@pytest.mark.parametrize("until", ["started", "finished", None])
def test_the_same_can_be_sent_again(joblog, make_broker, until):
    """What a job is unique by is free once it is cancelled, however long it was to be unique."""
    broker = make_broker("stub", joblog=joblog)

    @dramatiq.actor(unique=Unique("import:{user_id}", until=until))
    def work(user_id):
        """Do nothing."""

    first, other = work.send(7), work.send(8)
    with pytest.raises(DuplicateJob):
        work.send(7)
    joblog.cancel(first.message_id)

    second = work.send(7)
    for key, job in ((7, second), (8, other)):
        assert job.message_id == enqueue_once(broker, work.message(key)).message_id
    joblog.release()


# Its message, which still arrives


def dead_letters(broker):
    """Return how many messages were rejected."""
    if isinstance(broker, RedisBroker):
        return broker.client.zcard(f"{broker.namespace}:{xq_name('default')}")
    return broker.get_queue_message_counts("default")[2]


#: What runs in the story of each state in which a job is given up.
RAN = {"enqueued": [], "delayed": [], "retrying": ["work"], "waiting": ["first", "third"]}


class Stories:
    """Jobs that are cancelled, and their messages that are delivered then."""

    def __init__(self, joblog, broker, worker, eventually, *, rerun=None):
        self.joblog, self.broker, self.eventually = joblog, broker, eventually
        self.run_worker = lambda: worker(broker)
        self.ran = []
        self.entered, self.go = threading.Event(), threading.Event()

        # So long, that it is given up before it is due on a busy machine too.
        @dramatiq.actor(max_retries=3, min_backoff=2_000, max_backoff=2_100, rerun=rerun)
        def work(*, breaks=False):
            self.ran.append("work")
            if breaks:
                raise ValueError("it breaks")

        @dramatiq.actor(exclusive=Exclusive("s", on_conflict="wait"), rerun=rerun)
        def alone(name):
            self.ran.append(name)
            if name == "first":
                self.entered.set()
                self.go.wait(30)

        self.work, self.alone = work, alone

    def tell(self, state):
        """Cancel a job in a state, let its message be rejected, and return the jid."""
        if state == "enqueued":
            return self.before_a_worker(self.work.send(), state)
        if state == "delayed":
            return self.before_a_worker(self.work.send_with_options(delay=500), state)
        with self.run_worker():
            if state == "retrying":
                jid = self.cancel(self.work.send(breaks=True), state)
            else:
                jid = self.waiting()
            self.eventually(lambda: dead_letters(self.broker) == 1, timeout=90)
        return jid

    def before_a_worker(self, message, state):
        jid = self.cancel(message, state)
        with self.run_worker():
            self.eventually(lambda: dead_letters(self.broker) == 1, timeout=90)
        return jid

    def waiting(self):
        """Cancel the second of three that want a section."""
        first = self.alone.send("first")
        assert self.entered.wait(30)
        jid = self.cancel(self.alone.send("second"), "waiting")
        third = self.alone.send("third")
        self.until(third, "waiting")
        self.go.set()
        for message in (first, third):
            self.until(message, "finished")
        return jid

    def cancel(self, message, state):
        self.until(message, state)
        return self.joblog.cancel(message.message_id, who="ada").jid

    def until(self, message, state):
        self.eventually(lambda: self.joblog.get(message.message_id).state == state, timeout=30)


@pytest.mark.few(5)
@pytest.mark.parametrize(
    ("acks", "rerun"),
    [("handed", None), ("plain", None), ("auto", True)],
    ids=["handed", "plain", "rerun"],
)
@pytest.mark.parametrize("state", list(RAN))
def test_its_message_is_not_run(joblog, make_broker, worker, eventually, state, acks, rerun):
    """What was cancelled does not run when it is delivered, and goes to the dead letters."""
    broker = make_broker("redis", joblog=joblog, acks=acks)
    stories = Stories(joblog, broker, worker, eventually, rerun=rerun)

    jid = stories.tell(state)

    assert RAN[state] == stories.ran
    failures = {"retrying": ["retried"], "waiting": ["waited"]}
    assert ("dead", "cancelled", failures.get(state, [])) == told(joblog, jid)
    joblog.release()


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
@pytest.mark.parametrize("state", list(RAN))
def test_its_message_is_not_run_on_rabbitmq(joblog, make_broker, worker, eventually, state):
    """The same is true of RabbitMQ."""
    stories = Stories(joblog, make_broker("rabbit", joblog=joblog), worker, eventually)

    jid = stories.tell(state)

    assert RAN[state] == stories.ran
    assert ("dead", "cancelled") == told(joblog, jid)[:2]
    joblog.release()


@pytest.mark.process
def test_the_job_of_a_killed_worker(joblog, victims, eventually, tmp_path):
    """A lost job that was cancelled is not run when Redis delivers it to another process."""
    run, send, broker = victims
    with run(expects_critical="exited unexpectedly") as first:
        jid = send("waits")
        eventually((tmp_path / "began").exists)
        [worker] = first.workers
        os.kill(worker.pid, signal.SIGKILL)
        eventually(lambda: first.process.poll() is not None)
    with run(args=["--queues", "other"]):
        eventually(lambda: joblog.get(jid).state == "lost", timeout=30)

    joblog.cancel(jid, who="ada")
    (tmp_path / "began").unlink()
    with run():
        eventually(lambda: dead_letters(broker) == 1, timeout=30)

    assert not (tmp_path / "began").exists()
    assert ("dead", "cancelled", ["interrupted"]) == told(joblog, jid)


# What ran all the same


@pytest.mark.parametrize("state", ["finished", "dead", "skipped"])
def test_a_run_that_was_only_taken_to_be_gone(joblog, state):
    """Its end reports the real outcome, and the run is not an interruption."""
    joblog.core.transitions.write([start("t")])
    joblog.Job.update(state="lost").execute()
    joblog.cancel("j")
    assert 1 == joblog.get("j").interruptions
    reason = {"dead": "throws"}.get(state)

    for _ in range(2):
        joblog.core.transitions.write([event(Ended, state, "t", dead_reason=reason)])

    assert (state, reason, []) == told(joblog)
    assert (None, "t") == (joblog.get("j").interruptions, joblog.get("j").token)


def test_a_retry_of_it(joblog):
    """If the run fails and is to be retried, the job stays cancelled, and the retry is refused."""
    joblog.core.transitions.write([start("t")])
    joblog.Job.update(state="lost").execute()
    joblog.cancel("j")

    failure = {"jid": "j", "token": "t", "attempt": 1, "outcome": "retried"}
    end = dataclasses.replace(event(Ended, "retrying", "t", eta=NOW + 9), failure=failure)
    joblog.core.transitions.write([end])
    answer = joblog.core.transitions.write([start("u", attempt=2)])["j"]

    assert (False, "dead") == (answer.granted, answer.found)
    assert ("dead", "cancelled", ["retried"]) == told(joblog)


def test_a_run_that_could_not_ask(joblog, job_factory):
    """A run of a disconnected host is reported later: its end is stored, but not its start."""
    job_factory(jid="j", state="enqueued", finished_at=None, started_at=None)
    joblog.cancel("j")
    begun, ended = (
        dataclasses.replace(each, replayed=True)
        for each in (start("t", attempt=1), event(Ended, "finished", "t"))
    )

    joblog.core.transitions.write([begun])
    assert CANCELLED == told(joblog)
    joblog.core.transitions.write([ended])

    assert ("finished", None, []) == told(joblog)


def test_an_actor_that_does_not_ask(joblog, make_broker, worker, eventually):
    """With ``start="soon"``, a short job runs nevertheless, and the log has its outcome."""
    broker = make_broker("redis", joblog=joblog, start="soon")

    @dramatiq.actor
    def work():
        """Do nothing."""

    jid = work.send().message_id
    joblog.cancel(jid)
    with worker(broker):
        eventually(lambda: told(joblog, jid) == ("finished", None, []))
    assert 0 == dead_letters(broker)
    joblog.release()


def test_what_another_middleware_drops(joblog, job_factory):
    """An end without a run, such as of a message that is too old, changes nothing."""
    job_factory(jid="j", state="enqueued", finished_at=None, started_at=None)
    joblog.cancel("j")
    late = event(Ended, "dead", "t", dead_reason="age_limit", started_at=None)

    joblog.core.transitions.write([late])

    assert CANCELLED == told(joblog)


def test_totals_follow(joblog):
    """A job that was counted as dead, but has really finished, is finally counted once."""
    now = int(time.time() * 1000)

    def counted():
        joblog.core.totals.catch_up(now)
        minutes = joblog.core.tables.total.select().where(
            joblog.core.tables.total.span == 60_000, joblog.core.tables.total.count > 0
        )
        return sorted((row.outcome, row.count) for row in minutes)

    times = dict.fromkeys(("started_at", "created_at", "updated_at"), now - 900_000)
    joblog.core.transitions.write([start("t", **times)])
    joblog.Job.update(state="lost").execute()
    joblog.cancel("j")
    joblog.Job.update(finished_at=now - 600_000).execute()  # as if that was long ago
    assert [("dead", 1), ("interrupted", 1)] == counted()

    joblog.core.transitions.write([event(Ended, "finished", "t", finished_at=now - 500_000)])

    assert [("finished", 1)] == counted()
