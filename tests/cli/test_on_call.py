"""Commands for on-call duty: why, logs, queues, types and diff, in each output format."""

from __future__ import annotations

import json
import re
import threading
import time

import pytest

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000


@pytest.fixture
def database_url(sqlite_database):
    """Return the URL of a database: queries are tested on each kind elsewhere."""
    return sqlite_database


def ago(milliseconds):
    return int(time.time() * 1000) - milliseconds


def plain(text):
    """Return a terminal's output without colours."""
    return re.sub("\x1b\\[[0-9;]*m", "", text)


@pytest.fixture
def why(ask):
    """Return a function that returns the reason of a job, as in a pipe."""
    return lambda jid: ask("why", jid).stdout.splitlines()[0]


def test_why_it_has_not_run(job_factory, why, appear):
    """For a queued job, the reason says whether a worker consumes its queue and is free."""
    waits = {"state": "enqueued", "started_at": None, "finished_at": None}
    job_factory(jid="a", enqueued_at=ago(14 * MINUTE), **waits)
    assert why("a").startswith("It has waited in the queue 'default' for 14 min: no live worker")

    worker = appear("default", threads=1)
    assert "although a thread is free" in why("a")

    job_factory(state="started", process=worker.process)
    assert "its one thread is busy, and 1 jobs are due" in why("a")


def test_why_it_waits(joblog, job_factory, why):
    """For a waiting job, the reason has the holder, its position, and who has paused the key."""
    waits = {"state": "waiting", "section": "erp", "eta": ago(-MINUTE), "started_at": None}
    job_factory(jid="first", waiting_since=ago(9 * MINUTE), **waits)
    job_factory(jid="second", waiting_since=ago(4 * MINUTE), **waits)
    assert "has waited for 4 min for its section 'erp', with 1 before it: the key is free" in why(
        "second"
    )

    times = {"acquired_at": ago(MINUTE), "expires_at": ago(-MINUTE), "ttl": 2 * MINUTE}
    joblog.Lock.create(kind="section", key="erp", slot=0, owner="holder", fence=1, **times)
    joblog.release()
    assert "'erp', which holder holds, with 1 before it" in why("second")
    joblog.set_limit("erp", 0, who="ada")
    assert "ada has paused it" in why("second")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"state": "finished", "duration": 3200}, "It is done: it finished"),
        (
            {"state": "dead", "dead_reason": "retries_exhausted", "attempt": 6, "max_retries": 5},
            (
                r"It failed as often as max_retries allows \(6 of 6\): FeedError: row 7. It died 0 "
                "s ago"
            ),
        ),
        ({"state": "dead", "dead_reason": "retry_lost"}, "the broker refused its retry"),
        ({"state": "dead", "dead_reason": "something new"}, "It failed: FeedError: row 7"),
        ({"state": "skipped", "skip_reason": "closed account"}, "dropped .*: closed account"),
        (
            {"state": "retrying", "eta": 1},
            "Attempt 1 failed: FeedError: row 7. The next was due .* ago",
        ),
        ({"state": "delayed", "eta": 99_999_999_999_999}, "It is delayed until its time, "),
        ({"state": "started", "worker": "web1:7:9"}, "It has run on web1:7:9 for 0 s, attempt 1"),
        ({"state": "lost", "worker": "web1:7:9"}, "Its worker web1:7 has been gone for"),
    ],
)
def test_why_in_each_state(job_factory, why, row, reason):
    """There is a sentence for each state, even with an unknown reason."""
    job_factory(jid="a", error_type="FeedError", error_message="row 7", **row)

    assert re.search(reason, why("a"))


def test_the_whole_story(joblog, job_factory, ask, terminal, database_url):
    """``why`` shows the history in order: sending, runs, actions, and the end."""
    begun = ago(HOUR)
    job_factory(
        jid="a",
        state="dead",
        dead_reason="no_retries",
        error_type="FeedError",
        enqueued_at=begun,
        started_at=begun + 1000,
        finished_at=begun + 2000,
        worker="web1:7:9",
        parent_jid="parent-of-a",
    )
    joblog.dismiss("a", who="ada")

    found = json.loads(ask("why", "a", "--json").stdout)

    texts = ["sent by parent-of-a", "run 1 began on web1:7", "dead: FeedError", "ada dismissed it"]
    assert texts == [event["text"] for event in found["story"]]
    shown = plain(terminal("--database", database_url, "why", "a", columns=80))
    assert "■ dead: FeedError" in shown
    assert "sent by parent-o  60 min ago" in shown or "sent by parent-o  1 h ago" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_a_new_run_in_the_story(joblog, job_factory, ask):
    """A new run of the job follows who ran it again, after the job's own end."""
    ended = ago(HOUR)
    job_factory(
        jid="a",
        state="dead",
        error_type="FeedError",
        enqueued_at=ended - 2000,
        started_at=ended - 1000,
        finished_at=ended,
        # Long before the new run, as by a clock that is behind.
        updated_at=ended,
        replayed_by="b",
    )
    joblog.record("requeue", who="ada", jid="a", detail="as b")

    found = json.loads(ask("why", "a", "--json").stdout)["story"]

    texts = ["sent", "run 1 began", "dead: FeedError", "ada ran it again", "run again as b"]
    assert texts == [event["text"] for event in found]
    assert found[-2]["at"] == found[-1]["at"]


def test_logs(joblog, job_factory, ask):
    """``logs`` shows the lines of one job, in order, without control characters."""
    begun = ago(0)
    for jid in ("a", "b"):
        job_factory(jid=jid)
        for number in (2, 1, 3):
            row = {"token": "t", "attempt": 1, "number": number, "time": begun + number}
            text = f"{jid} line {number}\x1b[2J"
            joblog.Line.create(jid=jid, level="INFO", logger="shop", text=text, **row)
    joblog.release()

    rows = [row.split("\t") for row in ask("logs", "a").stdout.splitlines()]

    assert [f"a line {number}\\x1b[2J" for number in (1, 2, 3)] == [row[-1] for row in rows]
    documents = [json.loads(row) for row in ask("logs", "a", "--json").stdout.splitlines()]
    assert [1, 2, 3] == [document["number"] for document in documents]


@pytest.mark.parametrize(("state", "code"), [("finished", 0), ("dead", 1)])
def test_logs_that_come(joblog, job_factory, ask, state, code):
    """``logs -f`` follows until the job has ended, and its exit code shows whether it finished."""
    job_factory(jid="a", state="started")

    def goes_on():
        row = {"token": "t", "attempt": 1, "time": ago(0), "level": "INFO", "logger": "shop"}
        for number in range(1, 4):
            joblog.Line.create(jid="a", number=number, text=f"line {number}", **row)
        joblog.Job.update(state=state).where(joblog.Job.jid == "a").execute()
        joblog.release()

    job = threading.Timer(0.2, goes_on)
    job.start()
    shown = ask("logs", "a", "-f", "--every", 50, code=code).stdout
    job.join()

    assert ["line 1", "line 2", "line 3"] == [row.split("\t")[-1] for row in shown.splitlines()]


def test_queues(joblog, job_factory, ask, appear):
    """``queues`` shows each queue with its due jobs and workers, the furthest behind first."""
    ask("queues", code=1)
    busy = appear("busy", threads=1)
    appear("mail", "idle", threads=2)
    job_factory(state="started", process=busy.process, queue="busy")
    waits = {"state": "enqueued", "created_at": ago(3 * MINUTE), "updated_at": ago(3 * MINUTE)}
    for queue in ("nobody's", "nobody's", "mail"):
        job_factory(queue=queue, enqueued_at=ago(3 * MINUTE), **waits)

    found = json.loads(ask("queues", "--json").stdout)

    assert [
        ("nobody's", "no worker", 2, 0),
        ("mail", "behind", 1, 2),
        ("busy", "busy", 0, 1),
        ("idle", "idle", 0, 2),
    ] == [(q["name"], q["state"], q["due"], q["threads"]) for q in found]
    assert "nobody's\tno worker\t2\t" in ask("queues").stdout
    assert [queue.name for queue in joblog.queues()] == [q["name"] for q in found]


@pytest.fixture
def slower(job_factory):
    """Insert a type that takes longer than yesterday and a week ago, and one that does not."""
    for at in (days * DAY + 3 * HOUR for days in (0, 1, 2, 7, 14)):
        for _ in range(25):
            took = 5_000 if at < DAY else 500
            for kind, duration in (("import", took), ("mail", 100)):
                row = {"finished_at": ago(at), "created_at": ago(at), "duration": duration}
                job_factory(job_type=kind, **row)


@pytest.mark.full
def test_types(slower, ask, terminal, database_url):
    """``types`` shows each type with its past, the worst change first."""
    found = json.loads(ask("types", "--json").stdout)

    assert ["import", "mail"] == [row["name"] for row in found]
    assert (True, False) == tuple(row["is_worse"] for row in found)
    assert (25, 0.0) == (found[0]["ended"], found[0]["failed"])
    for columns in (80, 140):
        shown = plain(terminal("--database", database_url, "types", columns=columns))
        assert "slower, usually" in shown
        assert max(map(len, shown.splitlines())) <= columns


@pytest.mark.few(1)
@pytest.mark.parametrize("against", ["yesterday", "week"])
def test_what_changed(slower, ask, against):
    """``diff`` shows only what has changed."""
    found = json.loads(ask("diff", against, "--json").stdout)

    assert [("duration", "import")] == [(c["kind"], c["name"]) for c in found["changes"]]
    assert ask("diff", against).stdout.startswith("duration\timport\t-\t")


@pytest.mark.full
def test_what_changed_since_a_mark(joblog, slower, ask):
    """``diff`` from a mark, or a time, compares with an equally long period before it."""
    joblog.mark("v412", at=ago(15 * HOUR))

    found = json.loads(ask("diff", "v412", "--json").stdout)

    assert ("duration", "import") in [(c["kind"], c["name"]) for c in found["changes"]]
    assert found["against"][1] == found["since"]
    assert "is not a time" in ask("diff", "v413", code=2).stderr
    assert "is not before now" in ask("diff", "2999-01-01", code=2).stderr


def test_nothing_to_compare_with(job_factory, ask):
    """For a log of today, there is nothing to compare with, and the command says so."""
    job_factory()

    assert "nothing to compare with" in ask("diff", code=1).stderr
    assert ask("types").stdout.startswith("work\t1\t")


def test_none_failed_as_before(job_factory, ask):
    """With twice as many jobs and no failures, no share is reported as changed."""
    for days, number in ((0, 60), (1, 25), (2, 25)):
        for _ in range(number):
            at = ago(days * DAY + 3 * HOUR)
            job_factory(finished_at=at, created_at=at)

    assert ["jobs"] == [row.split("\t")[0] for row in ask("diff", "yesterday").stdout.splitlines()]
