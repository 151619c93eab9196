"""Problems: each kind with its facts, its cure and its search."""

from __future__ import annotations

import time
from datetime import timezone

import pytest

from dramatiq_joblog import JobLog, Problem
from dramatiq_joblog.states import ProblemKind

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000


def ago(milliseconds):
    return int(time.time() * 1000) - milliseconds


@pytest.fixture
def problems(joblog):
    """Return a function that returns the problems by kind, after a check of their form."""

    def ask(**options):
        joblog.release()
        found = joblog.problems(**options)
        # The PostgreSQL of the tests does not wait for the disk.
        found = [p for p in found if p.kind != ProblemKind.SETTINGS]
        for problem in found:
            assert isinstance(problem, Problem)
            assert problem.text[0].isupper() or problem.text[0].isdigit() or problem.subject
            assert problem.text.startswith(problem.title)
            assert problem.text.endswith(".")
            assert problem.cure
            assert problem.count > 0
            assert problem.since.tzinfo == timezone.utc
            if problem.search:
                # What is said to be so is what one finds.
                assert problem.count <= joblog.search(problem.search).count()
        return {problem.kind.value: problem for problem in found}

    return ask


@pytest.fixture
def ended(job_factory):
    """Return a function that inserts jobs that ended some time ago."""

    def make(number, before, **overrides):
        for _ in range(number):
            at = ago(before)
            job_factory(
                **{"created_at": at, "started_at": at, "finished_at": at, "updated_at": at}
                | overrides
            )

    return make


@pytest.fixture
def dies(ended):
    """Return a function that inserts jobs that became dead some time ago."""

    def make(number, before, error="FeedError", **overrides):
        died = {"state": "dead", "dead_reason": "retries_exhausted", "error_type": error}
        ended(number, before, **died | overrides)

    return make


def test_all_is_well(joblog, problems, ended, appear):
    """A log with normal jobs has no problems, and the checks do not change it."""
    appear("default")
    ended(20, HOUR)
    ended(20, 7 * DAY)
    before = joblog.jobs.count()

    assert {} == problems()
    assert before == joblog.jobs.count()
    assert joblog.database.is_closed()


def test_lost(joblog, problems, job_factory, appear):
    """Jobs lost with their worker are a problem at once, with their number and the worker."""
    appear("default")
    for thread in (1, 2):
        job_factory(state="lost", worker=f"web1:17:{thread}")

    found = problems()["lost"]

    assert (2, "state:lost") == (found.count, found.search)
    assert "web1:17" in found.text
    assert {"lost"} == set(problems())


def test_lost_and_nobody_to_say_so(joblog, problems, job_factory, appear):
    """Runs of a dead worker are a problem even if no live worker can mark them as lost."""
    gone = appear("default")
    job_factory(state="started", process=gone.process, worker="web1:17:3")
    worker = joblog.Worker
    worker.update(heartbeat_at=1, host="web1", pid=17).execute()

    found = problems()["lost"]

    assert "web1:17 (1 run)" in found.text
    assert "worker:web1:17" in found.search


def test_a_queue_that_no_worker_consumes(problems, job_factory, appear):
    """Each queue with jobs but no live worker is a problem, whatever its name."""
    appear("default")
    waits = {"state": "enqueued", "created_at": ago(180_000), "updated_at": ago(180_000)}
    waits["enqueued_at"] = ago(180_000)
    job_factory(**waits)
    for queue in ("mail", "mail", 'odd "queue" *\u202e'):
        job_factory(queue=queue, **waits)

    found = problems()

    assert {"queues"} == set(found)
    assert 'odd "queue"' in found["queues"].subject
    assert {} == problems(patience=HOUR)


def test_a_queue_with_only_delayed_jobs(problems, job_factory, appear):
    """Delayed jobs of a queue without a worker are a problem once they are due, not before."""
    appear("default")
    job_factory(state="delayed", queue="nightly", eta=ago(-HOUR), created_at=ago(DAY))
    assert {} == problems()

    job_factory(state="delayed", queue="nightly", eta=ago(120_000), created_at=ago(DAY))

    found = problems()
    assert {"queues"} == set(found)
    assert "state:delayed" in found["queues"].search


def test_no_heartbeat_at_all(problems, job_factory, ended):
    """If jobs finish but no process sends heartbeats, no queue is reported as without a worker."""
    job_factory(state="enqueued", created_at=ago(180_000), updated_at=ago(180_000))
    assert {"queues"} == set(problems())

    ended(1, MINUTE)

    assert {} == problems()


def test_all_threads_are_busy(problems, job_factory, appear):
    """Jobs and retries that wait for a thread are one problem, and not overdue as well."""
    worker, _ = appear("default", threads=1), appear("mail", threads=1)
    job_factory(state="started", process=worker.process)
    job_factory(state="enqueued", created_at=ago(180_000), queue="mail")
    assert {} == problems()

    job_factory(state="enqueued", created_at=ago(180_000))
    job_factory(state="retrying", eta=ago(HOUR), created_at=ago(2 * HOUR))

    found = problems()
    assert {"threads"} == set(found)
    assert 2 == found["threads"].count
    assert found["threads"].search == "state:enqueued state:retrying queue:default"


@pytest.mark.parametrize("state", ["delayed", "retrying", "waiting"])
def test_overdue(problems, job_factory, appear, state):
    """A due job that does not run although a thread is free is overdue; the search finds it."""
    appear("default")
    job_factory(state=state, eta=ago(-HOUR), created_at=ago(9 * HOUR))
    assert {} == problems()

    job_factory(state=state, eta=ago(HOUR), created_at=ago(2 * HOUR))

    found = problems()
    assert {"overdue"} == set(found)
    assert f"state:{state} overdue:5m" == found["overdue"].search


def test_a_paused_key(joblog, problems, job_factory, appear):
    """Jobs that wait for a paused key are not a problem."""
    appear("default")
    job_factory(state="waiting", section="erp", eta=ago(HOUR), created_at=ago(2 * HOUR))
    assert {"overdue"} == set(problems())

    joblog.set_limit("erp", 0, who="ada")

    assert {} == problems()


def test_lost_retries(joblog, problems, dies):
    """Jobs whose retry the broker refused are a problem until they are run again or dismissed."""
    dies(2, MINUTE, error=None, dead_reason="retry_lost")

    found = problems()

    assert {"retries_lost"} == set(found)
    jobs = list(joblog.search(found["retries_lost"].search))
    assert 2 == len(jobs)
    joblog.dismiss(*(job.jid for job in jobs), who="ada")
    assert {} == problems()


def test_a_new_error(joblog, problems, ended, dies):
    """An error not seen for a month is new, with its actor, until its jobs are dismissed."""
    ended(1, 3 * DAY)
    dies(3, 2 * MINUTE, actor="import_prices")

    found = problems()["new_error"]

    assert "FeedError is new in import_prices" in found.text
    assert 3 == found.count
    assert found.since.timestamp() * 1000 == pytest.approx(ago(2 * MINUTE), abs=MINUTE)
    joblog.dismiss(*(job.jid for job in joblog.search(found.search)), who="ada")
    assert {} == problems()


@pytest.mark.parametrize("counted", [False, True], ids=["uncounted", "counted"])
def test_an_error_that_was_seen_before(joblog, problems, ended, dies, counted):
    """An error of last week is not new, even if only totals of it are left."""
    ended(1, 9 * DAY)
    dies(1, 5 * DAY)
    dies(1, MINUTE)
    if counted:
        joblog.core.totals.catch_up(ago(0))
        joblog.prune({"dead": 2 * DAY, "finished": 100 * DAY})
    assert {} == problems()

    dies(1, MINUTE, actor="another")

    assert {"new_error"} == set(problems())


def test_a_log_that_was_just_made(problems, dies):
    """In the first hour of a log, no error is reported as new."""
    dies(5, MINUTE)

    assert {} == problems()


def test_errors_that_somebody_wanted(problems, ended, dies, job_factory):
    """Retries requested by an actor, and cancelled or aborted jobs, are not new errors."""
    ended(1, 3 * DAY)
    for reason in ("cancelled", "aborted", "throws"):
        dies(3, MINUTE, error=f"Of{reason}", dead_reason=reason)
    for _ in range(5):
        job_factory(state="retrying", error_type="Retry", eta=ago(-HOUR))

    assert {} == problems()


def test_a_few_retries_are_no_problem(problems, ended, job_factory):
    """A new error that is only retried is reported from three retries on."""
    ended(1, 3 * DAY)
    for _ in range(2):
        job_factory(state="retrying", error_type="FeedError", eta=ago(-HOUR))
    assert {} == problems()

    job_factory(state="retrying", error_type="FeedError", eta=ago(-HOUR))

    assert 3 == problems()["new_error"].count


@pytest.mark.few(1)
@pytest.mark.parametrize("counted", [False, True], ids=["uncounted", "counted"])
def test_a_rising_error(joblog, problems, dies, counted):
    """An error that is several times as frequent as in the week before rises."""
    for day in range(1, 9):
        dies(1, day * DAY)
    dies(2, MINUTE)
    assert {} == problems()

    dies(5, MINUTE)
    if counted:
        joblog.core.totals.catch_up(ago(0))

    found = problems()
    assert {"rising_error"} == set(found)
    assert "7 failed runs in the last hour" in found["rising_error"].text


@pytest.mark.full
def test_an_error_as_frequent_as_ever(problems, dies):
    """An error with a constant rate does not rise."""
    for hour in range(1, 8 * 24):
        dies(1, hour * HOUR)
    dies(3, MINUTE)

    assert {} == problems()


@pytest.mark.few(1)
@pytest.mark.parametrize("counted", [False, True], ids=["uncounted", "counted"])
def test_a_slower_type(joblog, problems, ended, counted):
    """Only a type whose jobs take several times as long as a week ago is slower."""
    for kind in ("import", "mail"):
        ended(12, 7 * DAY, job_type=kind, duration=200)
    ended(12, MINUTE, job_type="mail", duration=210)
    ended(12, MINUTE, job_type="import", duration=2_000)
    if counted:
        joblog.core.totals.catch_up(ago(0))

    found = problems()

    assert {"slower"} == set(found)
    assert found["slower"].text.startswith("import is slower than a week ago: p95 2.")
    assert "type:import" in found["slower"].search


def test_a_type_of_all_lengths(problems, ended):
    """A type with durations from 10 ms to an hour is not reported as slower by chance."""
    lengths = [10, 100, 900, 8_000, 60_000, 600_000, 3_600_000]
    for at, shift in ((7 * DAY, 0), (MINUTE, 1)):
        for number in range(14):
            ended(1, at, duration=lengths[(number + shift) % 7] * (1 + shift))

    assert {} == problems()


@pytest.mark.parametrize("counted", [False, True], ids=["uncounted", "counted"])
def test_a_type_that_fails_more(joblog, problems, ended, dies, counted):
    """A type with many more failed runs than a week ago is reported, by actor if it has no type."""
    ended(20, 7 * DAY)
    dies(2, 7 * DAY)
    ended(10, MINUTE)
    # None of these errors is new, or rises by itself.
    for number in range(15):
        dies(1, 5 * DAY, error=f"E{number}")
        dies(1, MINUTE, error=f"E{number}")
    if counted:
        joblog.core.totals.catch_up(ago(0))

    found = problems()

    assert {"failing"} == set(found)
    assert "work fails more often than a week ago: 60% of 25 runs" in found["failing"].text


def test_a_stuck_section(joblog, problems, job_factory):
    """A section held by an ended job is a problem, with that job."""
    row = {"kind": "section", "slot": 0, "fence": 1, "ttl": DAY, "expires_at": ago(-MINUTE)}
    job_factory(jid="ended")
    job_factory(jid="running", state="started")
    joblog.Lock.create(**row, key="stuck", owner="ended")
    joblog.Lock.create(**row, key="held", owner="running")

    found = problems()

    assert {"sections"} == set(found)
    assert (1, "id:ended") == (found["sections"].count, found["sections"].search)


def test_a_wrong_clock(joblog, problems, appear):
    """A worker whose host's clock is off is a problem."""
    appear("default")
    joblog.Worker.update(host="web7", skew=-90_000).execute()

    assert "web7" in problems()["clock"].text


def test_a_clock_that_leaps(problems, ended, monkeypatch):
    """The clock of this host affects no other check: a day ahead, only the clock is wrong."""
    ended(1, 3 * DAY)
    ended(10, HOUR)
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + DAY * 1_000_000)

    assert {"clock"} == set(problems())


@pytest.mark.new_database
def test_no_tables(database_url):
    """A log without tables has one problem, not one for each query."""
    log = JobLog(database_url)
    found = [p for p in log.problems() if p.kind != ProblemKind.SETTINGS]
    assert ["schema"] == [problem.subject for problem in found]
    log.close()


def test_no_database(tmp_path):
    """An unavailable database is the first problem, and nothing is raised."""
    log = JobLog("postgresql://ada:hunter2@127.0.0.1:1/shop", spool=tmp_path / "spool")

    (found,) = log.problems()

    assert ("database", "connection") == (found.kind, found.subject)
    assert "hunter2" not in repr(found)


def test_what_is_not_known_in_time(joblog, job_factory, eventually):
    """Checks that time out are one problem, which names them and the time limit."""
    job_factory()
    joblog.release()
    found = {}

    def is_unknown():
        # On a busy machine the connection alone takes longer, which is another problem.
        found.update({p.subject: p for p in joblog.problems(timeout=1)})
        return "unknown" in found

    eventually(is_unknown)
    assert "took longer than 0.001 s" in found["unknown"].text
    assert {} == {p.subject: p for p in joblog.problems() if p.kind == "database"}


def test_those_who_program(joblog, job_factory):
    """A problem has a form with plain values, for JSON."""
    job_factory(state="lost", worker="web1:17:3", updated_at=1_700_000_000_000)
    joblog.release()

    (found,) = [p.as_dict() for p in joblog.problems() if p.kind == "lost"]

    known = {"kind", "subject", "since", "count", "title", "text", "cure", "search", "muted"}
    assert known == set(found)
    assert ("lost", 1, "state:lost", "2023-11-14T22:13:20.000Z") == (
        *(found["kind"], found["count"], found["search"]),
        found["since"],
    )
