"""Starts committed ahead, by the consumer: only of runs that begin at once, or else withdrawn."""

from __future__ import annotations

import threading

import brokers
import dramatiq
import pytest
from dramatiq.middleware import Middleware, SkipMessage, default_middleware

from dramatiq_joblog import Exclusive, JobLog, JobLogMiddleware, Rate, current_job
from dramatiq_joblog.broker import acks, run_times
from dramatiq_joblog.broker import ahead as starts_ahead
from dramatiq_joblog.recording.events import Started, withdrawn
from dramatiq_joblog.recording.spool import Spool
from dramatiq_joblog.states import FINAL

#: The worker fetches twice as many messages as it has threads.
THREADS = 2


def ahead(batches):
    """Return the jids of starts that were committed together, more than the threads could."""
    together = [[e.jid for e in batch if e.kind == "start"] for batch in batches]
    return {jid for jids in together if len(jids) > THREADS for jid in jids}


def taken_back(batches):
    """Return the jids of starts that were withdrawn."""
    return [e.jid for batch in batches for e in batch if e.kind == "amend" and e.is_withdrawal]


def row_of(joblog, jid):
    """Return the state and the token of a row, without a query of the log."""
    select = f"SELECT state, token FROM {joblog.Job._meta.table_name} WHERE jid = "
    [row] = joblog.database.execute_sql(select + joblog.database.param, (jid,)).fetchall()
    return row


@pytest.fixture
def quick(joblog, make_broker, worker, eventually, monkeypatch):
    """Return a function that declares an actor whose runs are known to be short.

    Each run but the first calls *body*, if there is one; *broker* are arguments of the broker, and
    *options* those of the actor.
    """
    # Not for the machine to decide: on a busy one an empty run may take longer.
    monkeypatch.setattr(starts_ahead, "WITHIN", 5)

    def make(body=None, broker=None, **options):
        made = make_broker("redis", joblog=joblog, **(broker or {}))

        @dramatiq.actor(actor_name="quick", **options)
        def actor(n=None):
            if body is not None and n is not None:
                body(n)

        actor.send()
        with worker(made, worker_threads=1):
            eventually(lambda: ended(joblog) == 1)
        return made, actor

    return make


@pytest.fixture
def hold():
    """Return a function that declares an actor that keeps its thread, and the event to end it."""
    released = threading.Event()

    def declare():
        # Old versions of Dramatiq take messages of one priority in any order.
        @dramatiq.actor(actor_name="hold", priority=-1)
        def actor():
            assert released.wait(60)

        return actor

    yield declare, released
    released.set()


@pytest.fixture
def without_log(redis_url):
    """Return a function that returns another program's broker for the same queues."""
    made = []

    def connect(broker):
        other = brokers.connect(redis_url, namespace=broker.namespace, middleware=[])
        other.declare_queue("default")
        made.append(other)
        return other

    yield connect
    for other in made:
        brokers.disconnect(other)


def ended(joblog):
    """Return how many jobs have ended."""
    return joblog.jobs.where(joblog.Job.state.in_(FINAL)).count()


def was_run_once(joblog, jids):
    """Assert that each of these jobs has finished with its first run, and with no other."""
    for jid in jids:
        job = joblog.get(jid)
        assert ("finished", 1, None) == (str(job.state), job.attempt, job.interruptions)
        assert None not in (job.started_at, job.duration, job.queue_time, job.worker)
    assert 0 == joblog.Failure.select().where(joblog.Failure.jid.in_(list(jids))).count()


def test_short_jobs_are_started_together(joblog, quick, worker, eventually, batches, monkeypatch):
    """The starts of more short jobs than there are threads are committed together, and before."""
    monkeypatch.setattr(starts_ahead, "SOON", 30_000)
    seen = {}

    def body(n):
        job = current_job()
        seen[job.jid] = *row_of(joblog, job.jid), job.token

    broker, actor = quick(body)
    jids = {actor.send(n).message_id for n in range(8)}
    with worker(broker, worker_threads=THREADS):
        eventually(lambda: ended(joblog) == 9)

    assert ahead(batches) & jids
    assert {"started"} == {state for state, _, _ in seen.values()}
    assert all(stored == own for _, stored, own in seen.values())
    assert [] == taken_back(batches)
    was_run_once(joblog, jids)


def test_a_start_that_no_thread_takes_is_withdrawn(
    joblog, quick, worker, eventually, batches, hold
):
    """A fetched message whose threads stay busy is enqueued in the log, as it was."""
    broker, actor = quick()
    declare, released = hold
    blocker = declare()
    sent = [blocker.send() for _ in range(THREADS)] + [actor.send(n) for n in range(2)]
    jids = [message.message_id for message in sent]

    with worker(broker, worker_threads=THREADS):
        eventually(lambda: len(taken_back(batches)) == 2)
        assert set(jids[THREADS:]) == set(taken_back(batches))
        for jid in jids[THREADS:]:
            job = joblog.get(jid)
            assert ("enqueued", 1) == (str(job.state), job.attempt)
            assert {None} == {job.token, job.started_at, job.worker, job.process, job.queue_time}
        released.set()
        eventually(lambda: ended(joblog) == 5)
    was_run_once(joblog, jids)


def test_a_worker_that_stops_withdraws(joblog, quick, worker, eventually, batches, hold):
    """A worker that stops gives back what it fetched: enqueued in the log, and in the broker."""
    broker, actor = quick()
    declare, released = hold
    blocker = declare()
    sent = [blocker.send() for _ in range(THREADS)] + [actor.send(n) for n in range(2)]
    jids = [message.message_id for message in sent]

    with worker(broker, worker_threads=THREADS) as running:
        eventually(lambda: joblog.jobs.started().where(joblog.Job.actor == "hold").count() == 2)
        for thread in running.workers:
            thread.stop()
        released.set()

    assert ["enqueued"] * 2 == [str(joblog.get(jid).state) for jid in jids[THREADS:]]
    with worker(broker, worker_threads=THREADS):
        eventually(lambda: ended(joblog) == 5)
    was_run_once(joblog, jids)


@pytest.mark.parametrize("when", ["soon", "late"])
def test_a_short_job_that_lasts_is_shown_as_it_runs(
    joblog, quick, worker, eventually, batches, monkeypatch, when
):
    """If a run turns out to last, its row has the thread and the start of the run itself."""
    if when == "late":
        wait = starts_ahead.StartAhead.wait

        def wait_long(start):
            # Its thread has taken it, and not begun, when that is checked.
            answer = wait(start)
            eventually(lambda: start.is_checked)
            return answer

        monkeypatch.setattr(starts_ahead.StartAhead, "wait", wait_long)
    go_on, workers = threading.Event(), {}

    def body(n):
        workers[current_job().jid] = str(threading.get_native_id())
        assert go_on.wait(60)

    broker, actor = quick(body)
    jids = [actor.send(n).message_id for n in range(4)]

    def shown():
        jobs = [joblog.get(jid) for jid in workers]
        return {job.jid: str(job.worker).rpartition(":")[2] for job in jobs} == workers

    with worker(broker, worker_threads=THREADS):
        eventually(lambda: len(workers) == THREADS)
        eventually(shown)
        go_on.set()
        eventually(lambda: ended(joblog) == 5)
    assert ahead(batches)
    was_run_once(joblog, jids)


def test_a_job_that_asks_finds_no_run_that_has_not_begun(
    joblog, quick, worker, eventually, batches
):
    """An actor that queries the log is not started ahead: it sees only what runs."""
    others = []

    def body(n):
        mine = current_job().jid
        others.append(joblog.jobs.in_progress().where(joblog.Job.jid != mine).count())

    broker, actor = quick(body)
    for n in range(8):
        actor.send(n)
    with worker(broker, worker_threads=THREADS):
        eventually(lambda: ended(joblog) == 9)

    assert 8 == len(others)
    # The other thread may run another one.
    assert max(others) < THREADS


class Asking(Middleware):
    """Asks before each message how many jobs are in progress."""

    def __init__(self, joblog):
        self.joblog, self.answers = joblog, []

    def before_process_message(self, broker, message):
        if message.args:
            mine = message.message_id
            others = self.joblog.jobs.in_progress().where(self.joblog.Job.jid != mine)
            self.answers.append(others.count())


def test_a_middleware_that_asks_finds_no_run_that_has_not_begun(
    joblog, quick, worker, eventually, batches
):
    """If a middleware before the log queries it, nothing is started ahead: it sees what runs."""
    asking = Asking(joblog)
    broker, actor = quick(broker={"middleware": [*(m() for m in default_middleware), asking]})
    for n in range(8):
        actor.send(n)
    with worker(broker, worker_threads=THREADS):
        eventually(lambda: ended(joblog) == 9)

    assert 8 == len(asking.answers)
    assert max(asking.answers) < THREADS


def test_a_broker_of_two_logs(joblog, quick, worker, eventually, batches, tmp_path):
    """Beside another log, whose run hides that of this one, nothing is started ahead."""
    broker, actor = quick()
    other = JobLog(f"sqlite:///{tmp_path / 'other.db'}")
    other.create_tables()
    broker.add_middleware(JobLogMiddleware(other))
    for n in range(8):
        actor.send(n)
    with worker(broker, worker_threads=THREADS):
        eventually(lambda: ended(joblog) == 9)
    other.close()

    assert set() == ahead(batches)


class Changing(Middleware):
    """Replaces the arguments of messages before they are run."""

    def before_process_message(self, broker, message):
        if message.args:
            message._message.__dict__["args"] = ("changed",)


def test_a_message_that_another_middleware_changes(joblog, quick, worker, eventually, batches):
    """A message that was changed after its start is started again; its actor never ahead."""
    ran = []
    stack = [*(m() for m in default_middleware), Changing()]
    broker, actor = quick(ran.append, broker={"middleware": stack})
    jids = [actor.send(n).message_id for n in range(12)]
    with worker(broker, worker_threads=THREADS):
        eventually(lambda: ended(joblog) == 13)

    assert ["changed"] * 12 == ran
    assert 0 < len(taken_back(batches)) <= 2 * THREADS
    was_run_once(joblog, jids)


class Dropping(Middleware):
    """Skips messages with an argument below 4."""

    def before_process_message(self, broker, message):
        if message.args and message.args[0] < 4:
            raise SkipMessage(f"{message.args[0]} is not wanted")


def test_a_message_that_another_middleware_drops(joblog, quick, worker, eventually, batches):
    """A message that is dropped after its start was committed is skipped, and never began."""
    stack = [*(m() for m in default_middleware), Dropping()]
    broker, actor = quick(broker={"middleware": stack})
    jids = [actor.send(n).message_id for n in range(8)]
    with worker(broker, worker_threads=THREADS):
        eventually(lambda: ended(joblog) == 9)

    assert ahead(batches)
    for jid in jids[:4]:
        job = joblog.get(jid)
        assert ("skipped", None, None) == (str(job.state), job.started_at, job.duration)
        assert "Dropping" in job.skip_reason
    was_run_once(joblog, jids[4:])


def test_a_job_that_has_ended_is_not_run(joblog, quick, worker, eventually, batches):
    """A message that is delivered again is refused, also if its start was asked for ahead."""
    ran = []
    broker, actor = quick(ran.append)
    done = [actor.send(n) for n in range(4)]
    key = f"{broker.namespace}:default"
    stored = broker.client.hgetall(f"{key}.msgs")
    with worker(broker, worker_threads=THREADS):
        eventually(lambda: ended(joblog) == 5)

    # As after a kill between the commit and the acknowledgement.
    broker.client.hset(f"{key}.msgs", mapping=stored)
    broker.client.rpush(key, *stored)
    with worker(broker, worker_threads=THREADS):
        eventually(lambda: broker.client.hlen(f"{key}.msgs") == 0)

    assert 4 == len(ran)
    was_run_once(joblog, [message.message_id for message in done])


@pytest.mark.parametrize(
    "options",
    [
        {"max_interruptions": 3},
        {"job_user": lambda n=None: 7},
        {"unique": "{n}"},
        {"exclusive": Exclusive("all", limit=9)},
        {"exclusive": Rate("all", 99, per=1_000)},
        {"exclusive": ["one:{n}", "two:{n}"]},
    ],
    ids=lambda options: str(*options),
)
def test_who_is_not_started_ahead(joblog, quick, worker, eventually, batches, options):
    """Where a start counts, may be refused or calls the application's code, its thread does it."""
    broker, actor = quick(**options)
    for n in range(8):
        actor.send(n)
    with worker(broker, worker_threads=THREADS):
        eventually(lambda: ended(joblog) == 9)

    assert set() == ahead(batches)


def test_a_withdrawn_start_in_the_spool(tmp_path):
    """A start that its process withdrew before it died was not cut off."""
    row = {"jid": "job", "token": "t", "attempt": 1, "process": "p", "state": "started"}
    events = [Started(row), withdrawn(row, 1_800_000_000_000)]
    spool = Spool(tmp_path)
    spool.append(events)
    # As if its process had died.
    spool.forget()

    [kept] = Spool(tmp_path).left_behind()
    assert [False] == [event.cut_off for event in kept if isinstance(event, Started)]
    assert kept[1].columns == events[1].columns
    assert [] == list(tmp_path.iterdir())


@pytest.fixture
def fetched(monkeypatch):
    """Return a function that notes how many messages each fetch of a broker asks for, if any come.

    No fetch is due because others take long.
    """
    monkeypatch.setattr(run_times, "BRIEF", 5)
    monkeypatch.setattr(acks, "ROOM_WITHIN", 60)

    def note(broker):
        sizes, fetch = [], broker.do_fetch

        def noting(queue, prefetch):
            messages = fetch(queue, prefetch)
            if messages:
                sizes.append(prefetch)
            return messages

        broker.do_fetch = noting
        return sizes

    return note


def test_short_jobs_are_fetched_in_whole_batches(
    joblog, quick, worker, eventually, fetched, monkeypatch
):
    """While some jobs of a batch of short ones run, no more are fetched."""
    batch = 2 * THREADS
    asking, decided = threading.Event(), threading.Event()

    class Room(threading.Event):
        def wait(self, timeout=None):
            asking.clear()
            decided.set()
            return super().wait(timeout)

    ask = acks._HandingConsumer.__next__

    def ask_before_the_last_ends(consumer):
        if not isinstance(consumer._room, Room):
            consumer._room = Room()
        if not consumer._ready and consumer.outstanding_message_count:
            eventually(lambda: consumer.outstanding_message_count == 1)
            asking.set()
        try:
            return ask(consumer)
        finally:
            asking.clear()

    def body(n):
        if n % batch == batch - 1:
            # Until the consumer waits, or fetches.
            assert decided.wait(60)
            decided.clear()

    broker, actor = quick(body)
    # Only now: the first job, which ends at once, has a consumer of its own.
    monkeypatch.setattr(acks._HandingConsumer, "__next__", ask_before_the_last_ends)
    sizes, noting = fetched(broker), broker.do_fetch

    def fetching(queue, prefetch):
        messages = noting(queue, prefetch)
        if asking.is_set():
            decided.set()
        return messages

    broker.do_fetch = fetching
    for n in range(4 * batch):
        actor.send(n)
    with worker(broker, worker_threads=THREADS):
        eventually(lambda: ended(joblog) == 4 * batch + 1)
    assert [batch] * 4 == sizes


def test_short_jobs_beside_a_long_one(
    joblog, quick, worker, eventually, fetched, hold, monkeypatch
):
    """A long job, which keeps a thread, does not keep the consumer from fetching short ones."""
    monkeypatch.setattr(starts_ahead, "WITHIN", 0.5)
    broker, actor = quick()
    fetched(broker)
    declare, released = hold
    blocker = declare()
    blocker.send()
    with worker(broker, worker_threads=THREADS):
        [log] = [m for m in broker.middleware if isinstance(m, JobLogMiddleware)]
        eventually(lambda: log._ahead.count_longer() == 1)
        for n in range(16):
            actor.send(n)
        eventually(lambda: ended(joblog) == 17)
        released.set()


# Retries


@pytest.fixture
def fail_once(joblog, quick, without_log, worker, eventually):
    """Return a function that lets jobs fail, and enqueues their retries; and their rows before."""

    def make(number):
        failed = set()

        def body(n):
            if n not in failed:
                failed.add(n)
                raise ValueError(f"{n} fails once")

        broker, actor = quick(body, max_retries=3, min_backoff=3_600_000, max_backoff=3_600_000)
        sent = [actor.send(n) for n in range(number)]
        with worker(broker, worker_threads=THREADS):
            eventually(lambda: joblog.jobs.retrying().count() == number)
        rows = {message.message_id: columns_of(joblog, message.message_id) for message in sent}

        def enqueue():
            plainly = without_log(broker)
            for message in sent:
                plainly.enqueue(message.copy(options={"retries": 1}))

        return broker, rows, enqueue

    return make


def columns_of(joblog, jid):
    """Return the columns of a job that describe its runs."""
    job = joblog.get(jid)
    changing = {"eta", "updated_at", "process"}
    return {name: value for name, value in job.__data__.items() if name not in changing}


def test_retries_are_started_together(joblog, fail_once, worker, eventually, batches):
    """The starts of due retries are committed together; the first run's queue time stays."""
    broker, rows, enqueue = fail_once(6)
    enqueue()
    with worker(broker, worker_threads=THREADS):
        eventually(lambda: ended(joblog) == 7)

    assert ahead(batches) & rows.keys()
    for jid, before in rows.items():
        job = joblog.get(jid)
        assert ("finished", 2, None) == (str(job.state), job.attempt, job.interruptions)
        assert job.queue_time == before["queue_time"]
        assert ["retried"] == [failure.outcome for failure in job.failures]


def test_a_withdrawn_retry(joblog, fail_once, hold, worker, eventually, batches):
    """A retry whose start is withdrawn is what it was before, with the run that failed."""
    declare, released = hold
    broker, rows, enqueue = fail_once(2)
    blocker = declare()
    for _ in range(THREADS):
        blocker.send()
    enqueue()
    with worker(broker, worker_threads=THREADS):
        eventually(lambda: rows.keys() == set(taken_back(batches)))
        assert rows == {jid: columns_of(joblog, jid) for jid in rows}
        assert None not in {joblog.get(jid).eta for jid in rows}
        released.set()
        eventually(lambda: ended(joblog) == 5)
    assert {("finished", 2)} == {(str(j.state), j.attempt) for j in map(joblog.get, rows)}
    assert 2 == joblog.Failure.select().where(joblog.Failure.outcome == "retried").count()


# Sections


def section_of(joblog, job):
    """Return the key of the section that a run holds, without a query of the log."""
    database = joblog.database
    select = f"SELECT key FROM {joblog.Lock._meta.table_name} WHERE owner = {database.param}"
    if "mysql" in type(database).__name__.lower():
        select = select.replace(" key ", " `key` ")
    select += f" AND token = {database.param}"
    [(key,)] = database.execute_sql(select, (job.jid, job.token)).fetchall()
    return key


def holders(joblog):
    """Return the jids of the jobs that hold a section."""
    return {lock.owner for lock in joblog.locks}


def test_jobs_with_sections_are_started_together(joblog, quick, worker, eventually, batches):
    """The starts of jobs in sections of their own are committed together, with their keys."""
    seen = {}

    def body(n):
        job = current_job()
        seen[job.jid] = n, job.fence, job.lease_lost, section_of(joblog, job) == f"quick:{n}"

    broker, actor = quick(body, exclusive="quick:{n}")
    jids = [actor.send(n).message_id for n in range(8)]
    with worker(broker, worker_threads=THREADS):
        eventually(lambda: ended(joblog) == 9)

    assert ahead(batches) & set(jids)
    assert {jid: (n, 1, False, True) for n, jid in enumerate(jids)} == seen
    assert [] == list(joblog.locks)
    was_run_once(joblog, jids)


def test_messages_without_keys(joblog, quick, without_log, worker, eventually, batches):
    """Messages of senders that know nothing of sections get their keys when they are fetched."""
    keys = {}

    def body(n):
        keys[n] = section_of(joblog, current_job())

    broker, actor = quick(body, exclusive="quick:{n}")
    plainly = without_log(broker)
    for n in range(8):
        plainly.enqueue(actor.message(n))
    with worker(broker, worker_threads=THREADS):
        eventually(lambda: ended(joblog) == 9)

    assert ahead(batches)
    assert {n: f"quick:{n}" for n in range(8)} == keys


def test_keys_that_code_makes(joblog, quick, without_log, worker, eventually, batches):
    """A key from a callable is made by the sender, or on the job's own thread, never between."""
    threads = set()

    def key(n=None):
        threads.add(threading.current_thread().name)
        return f"quick:{n}"

    broker, actor = quick(exclusive=key)
    bound = {actor.send(n).message_id for n in range(8)}
    with worker(broker, worker_threads=THREADS):
        eventually(lambda: ended(joblog) == 9)
    assert ahead(batches) & bound

    plainly = without_log(broker)
    for n in range(8):
        plainly.enqueue(actor.message(n))
    with worker(broker, worker_threads=THREADS):
        eventually(lambda: ended(joblog) == 17)
    assert ahead(batches) <= bound
    assert not [name for name in threads if "Consumer" in name]


@pytest.mark.parametrize("stops", [False, True], ids=["no thread takes it", "its worker stops"])
def test_a_withdrawn_start_gives_its_section_back(
    joblog, quick, worker, eventually, batches, hold, stops
):
    """The section of a start that is withdrawn is free, for other jobs too."""
    broker, actor = quick(exclusive="quick:{n}")
    declare, released = hold
    blocker = declare()
    sent = [blocker.send() for _ in range(THREADS)] + [actor.send(n) for n in range(2)]
    jids = {message.message_id for message in sent[THREADS:]}

    with worker(broker, worker_threads=THREADS) as running:
        eventually(lambda: joblog.jobs.started().where(joblog.Job.actor == "hold").count() == 2)
        if stops:
            for thread in running.workers:
                thread.stop()
            released.set()
        else:
            eventually(lambda: jids == set(taken_back(batches)))
            eventually(lambda: not holders(joblog))
            assert 0 == len(joblog.core.locks.leases)
            with joblog.lock("quick:0", wait=0):
                pass
            released.set()
            eventually(lambda: ended(joblog) == 5)

    assert jids <= set(taken_back(batches))
    assert set() == holders(joblog)
    with worker(broker, worker_threads=THREADS):
        eventually(lambda: ended(joblog) == 5)
    was_run_once(joblog, jids)


@pytest.mark.parametrize("policy", ["skip", "wait", "retry", "fail"])
def test_a_section_that_is_not_free(joblog, quick, worker, eventually, batches, policy):
    """A start ahead never decides for a policy: the job's own thread finds the section taken."""
    exclusive = Exclusive("quick:{n}", on_conflict=policy, wait_for=60_000)
    broker, actor = quick(exclusive=exclusive, max_retries=9, min_backoff=100, max_backoff=200)
    with joblog.lock("quick:0"):
        jids = [actor.send(n).message_id for n in range(8)]
        with worker(broker, worker_threads=THREADS):
            eventually(lambda: ended(joblog) >= 8)
            state = {"skip": "skipped", "wait": "waiting", "retry": "retrying", "fail": "dead"}
            eventually(lambda: str(joblog.get(jids[0]).state) == state[policy])
            assert joblog.get(jids[0]).started_at is None
    assert ahead(batches)
    assert [] == taken_back(batches)
    with worker(broker, worker_threads=THREADS):
        eventually(lambda: ended(joblog) == 9)
    was_run_once(joblog, jids[1:])


@pytest.mark.parametrize("policy", ["wait", "retry"])
def test_many_jobs_of_one_section(joblog, quick, worker, eventually, batches, policy):
    """Of the jobs of one section that were fetched together, at most one runs at a time."""
    guard, ran, together = threading.Lock(), [], []

    def body(n):
        if not guard.acquire(blocking=False):
            together.append(n)
            return
        ran.append(n)
        guard.release()

    exclusive = Exclusive("one", on_conflict=policy)
    broker, actor = quick(body, exclusive=exclusive, max_retries=99, min_backoff=10, max_backoff=20)
    for n in range(8):
        actor.send(n)
    with worker(broker, worker_threads=THREADS):
        eventually(lambda: ended(joblog) == 9)

    assert [] == together
    assert list(range(8)) == sorted(ran)
    starts = [event for batch in batches for event in batch if event.kind == "start"]
    assert not [event for event in starts if event.if_free]


class Moving(Middleware):
    """Gives jobs another section before they are run."""

    def before_process_message(self, broker, message):
        if message.args:
            message.options["joblog_section"]["key"] = "moved"


def test_a_section_that_another_middleware_changes(joblog, quick, worker, eventually, batches):
    """A job whose key was changed after its start runs with the new one; the other is free."""
    keys = []

    def body(n):
        keys.append(section_of(joblog, current_job()))

    stack = [*(m() for m in default_middleware), Moving()]
    broker, actor = quick(
        body, broker={"middleware": stack}, exclusive=Exclusive("quick:{n}", on_conflict="wait")
    )
    jids = [actor.send(n).message_id for n in range(6)]
    with worker(broker, worker_threads=THREADS):
        eventually(lambda: ended(joblog) == 7)

    assert ["moved"] * 6 == keys
    assert set() == holders(joblog)
    assert 0 < len(taken_back(batches)) <= 2 * THREADS
    assert {"finished"} == {str(joblog.get(jid).state) for jid in jids}
