"""Events late, twice, reordered and from two workers: invariants of a row."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
import tiers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peewee import MySQLDatabase, PostgresqlDatabase

from dramatiq_joblog.recording.events import GRANTED, Ended, Enqueued, Started
from dramatiq_joblog.recording.tokens import new_token, same_delivery
from dramatiq_joblog.states import FINAL

JID = "job"
NOW = 1_800_000_000_000


def row(state, attempt=1, token=None, at=0, **columns):
    ends = {"finished_at": NOW + at} if state in FINAL else {}
    starts = {"started_at": NOW + at} if token else {}
    return {
        "jid": JID,
        "actor": "work",
        "queue": "default",
        "state": state,
        "attempt": attempt,
        "token": token,
        "enqueued_at": NOW,
        "created_at": NOW + at,
        "updated_at": NOW + at,
        **starts,
        **ends,
        **columns,
    }


def failure(token, attempt, outcome):
    return {"jid": JID, "token": token, "attempt": attempt, "outcome": outcome}


def enqueued(attempt=1, state="enqueued"):
    return Enqueued(row(state, attempt))


def start(token, attempt=1, **flags):
    return Started(row("started", attempt, token), **flags)


def end(token, attempt=1, state="finished"):
    outcome = {"retrying": "retried", "dead": "dead", "skipped": "skipped"}.get(state)
    failed = failure(token, attempt, outcome) if outcome else None
    extra = {"dead_reason": "retries_exhausted"} if state == "dead" else {}
    return Ended(row(state, attempt, token, at=5, **extra), failed)


def copy(event):
    return dataclasses.replace(event, row=dict(event.row))


def failures_of(events):
    return [e.failure for e in events if isinstance(e, Ended) and e.failure]


def life(draw, attempts, first_token):
    """Draw the events of one job, in their true order."""
    events = [enqueued()]
    for attempt in range(1, attempts + 1):
        token = f"{first_token}{attempt}"
        last = attempt == attempts
        states = ["finished", "dead", "skipped"] if last else ["retrying"]
        state = draw(st.sampled_from(states))
        events += [start(token, attempt), end(token, attempt, state)]
    return events


@st.composite
def lives(draw):
    return life(draw, draw(st.integers(1, 4)), "run")


@st.composite
def shuffled_lives(draw):
    """Draw a job's events, some twice, in any order, because spooled events are written late.

    A start alone after a job's end is another delivery, which runs.
    """
    events = [dataclasses.replace(e, replayed=isinstance(e, Started)) for e in draw(lives())]
    again = draw(st.lists(st.sampled_from(events), max_size=4))
    return events, draw(st.permutations(events + again))


def told(joblog):
    return joblog.Job.get(joblog.Job.jid == JID)


def write_each(joblog, events):
    joblog.Job.delete().execute()
    joblog.Failure.delete().execute()
    for event in events:
        joblog.core.transitions.write([copy(event)])


property_settings = settings(
    max_examples=tiers.examples(60),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@property_settings
@given(events=lives(), data=st.data())
def test_repeated_events_change_nothing(joblog, events, data):
    """Events in order, each repeated any number of times, leave the row of the job's end."""
    repeated = [event for event in events for _ in range(data.draw(st.integers(1, 3)))]

    write_each(joblog, repeated)

    last = events[-1].row
    job = told(joblog)
    assert (last["state"], last["attempt"], last["token"]) == (job.state, job.attempt, job.token)
    failed = [failed["token"] for failed in failures_of(events)]
    assert failed == [f.token for f in job.failures]


@property_settings
@given(lives_and_order=shuffled_lives())
def test_a_finished_row_never_goes_back(joblog, lives_and_order):
    """Once finished, no event of the same job in any order changes the row."""
    _, order = lives_and_order
    joblog.Job.delete().execute()
    joblog.Failure.delete().execute()
    finished = None
    for event in order:
        joblog.core.transitions.write([copy(event)])
        job = told(joblog)
        if finished is not None:
            assert finished == (job.state, job.attempt, job.token, job.finished_at)
        elif job.state == "finished":
            finished = (job.state, job.attempt, job.token, job.finished_at)


@property_settings
@given(lives_and_order=shuffled_lives())
def test_an_older_attempt_never_replaces_a_newer_one(joblog, lives_and_order):
    """The attempt on a row never decreases, unless the job is restarted on purpose."""
    _, order = lives_and_order
    joblog.Job.delete().execute()
    joblog.Failure.delete().execute()
    highest, before = 0, None
    for event in order:
        joblog.core.transitions.write([copy(event)])
        job = told(joblog)
        # A dead or skipped job may be put back by hand, from any attempt.
        if before not in ("dead", "skipped"):
            assert job.attempt >= highest
        highest, before = job.attempt, job.state


@property_settings
@given(lives_and_order=shuffled_lives())
def test_every_failed_run_is_kept_once(joblog, lives_and_order):
    """Each failed run has exactly one Failure row, whatever the order."""
    events, order = lives_and_order

    write_each(joblog, order)

    failed = {
        e.failure["token"]: e.failure["outcome"]
        for e in events
        if isinstance(e, Ended) and e.failure
    }
    kept = [(f.token, f.outcome) for f in joblog.Failure.select()]
    assert len(kept) == len({token for token, _ in kept})
    assert failed.items() <= dict(kept).items()


@property_settings
@given(data=st.data())
def test_two_workers_on_one_delivery(joblog, data):
    """Of two runs of one attempt, only the newer token ends the job; the older is interrupted."""
    joblog.Job.delete().execute()
    joblog.Failure.delete().execute()
    first = [start("a"), end("a", state=data.draw(st.sampled_from(["finished", "dead"])))]
    second = [start("b"), end("b", state=data.draw(st.sampled_from(["finished", "dead"])))]
    order = data.draw(
        st.permutations([0, 0, 1, 1]).map(lambda turns: [(first, second)[turn] for turn in turns])
    )
    taken = {id(first): 0, id(second): 0}
    running = []
    for events in order:
        event = copy(events[taken[id(events)]])
        taken[id(events)] += 1
        answers = joblog.core.transitions.write([event])
        job = told(joblog)
        if isinstance(event, Started):
            if answers.get(JID, GRANTED).granted:
                running.append(event.row["token"])
                assert ("started", event.row["token"]) == (job.state, job.token)
            else:
                assert job.state == "finished"
        elif running and running[-1] == event.row["token"]:
            assert event.row["state"] == job.state

    owners = {f.token for f in joblog.Failure.select() if f.outcome == "interrupted"}
    assert told(joblog).token not in owners


def test_a_start_waits_for_no_enqueue_row(joblog):
    """A start is written even if its enqueue event comes later, which then changes nothing."""
    joblog.core.transitions.write([start("a")])
    joblog.core.transitions.write([enqueued()])

    assert "started" == told(joblog).state
    assert 1 == joblog.Job.select().count()


def test_takeover_closes_the_open_run(joblog):
    """A redelivered run closes the open one as interrupted; its late end then changes nothing."""
    first, second = new_token("one"), new_token("one")
    joblog.core.transitions.write([start(first)])
    answer = joblog.core.transitions.write([start(second)])[JID]
    joblog.core.transitions.write([end(first, state="finished")])

    assert answer.granted
    job = told(joblog)
    assert ("started", second) == (job.state, job.token)
    assert [(first, "interrupted", 1)] == [(f.token, f.outcome, f.attempt) for f in job.failures]


def test_a_presumed_interruption_is_corrected(joblog):
    """A run presumed interrupted that then fails is stored with its own error."""
    joblog.core.transitions.write([start("a")])
    joblog.core.transitions.write([start("b")])
    joblog.core.transitions.write([end("a", state="retrying")])

    assert [("a", "retried")] == [(f.token, f.outcome) for f in told(joblog).failures]


def test_refused_start_tells_the_state(joblog):
    """A refused start returns the state found."""
    first, late = new_token("one"), start(new_token("one"))
    joblog.core.transitions.write([start(first)])
    joblog.core.transitions.write([end(first)])
    answer = joblog.core.transitions.write([late])[JID]

    assert (False, "finished") == (answer.granted, answer.found)
    assert first == told(joblog).token


def test_redelivery_of_a_dead_job(joblog):
    """A dead job is not run again by a redelivery, and is by a new delivery."""
    first, again, put_back = new_token("one"), new_token("one"), new_token("two")
    joblog.core.transitions.write([start(first)])
    joblog.core.transitions.write([end(first, state="dead")])
    redelivered = joblog.core.transitions.write([start(again)])[JID]
    deliberate = joblog.core.transitions.write([start(put_back)])[JID]

    assert (False, True) == (redelivered.granted, deliberate.granted)
    assert ("started", None, None) == (
        told(joblog).state,
        told(joblog).dead_reason,
        told(joblog).finished_at,
    )


@pytest.mark.parametrize("delivery", ["one", None])
@pytest.mark.parametrize("told_late", [False, True])
def test_redelivery_after_a_lost_retry(joblog, delivery, told_late):
    """A job whose retry was refused runs again if its message comes again, at the same attempt."""
    first, again = new_token(delivery), new_token(delivery)
    joblog.core.transitions.write([start(first, 2)])
    dead = end(first, 2, state="dead")
    dead.row["dead_reason"] = "retry_lost"
    joblog.core.transitions.write([dead])
    older = start(new_token(None), 1, redelivered=True)
    assert not joblog.core.transitions.write([older])[JID].granted
    redelivered = kept(again, at=10, attempt=2, cut_off=True) if told_late else start(again, 2)
    redelivered = dataclasses.replace(redelivered, redelivered=delivery is None)
    assert joblog.core.transitions.write([redelivered])[JID].granted

    job = told(joblog)
    state = "lost" if told_late else "started"
    assert (state, again, None) == (job.state, job.token, job.dead_reason)
    assert [(first, "dead")] == [(f.token, f.outcome) for f in job.failures]


@pytest.mark.parametrize("until", [None, "started", "finished"])
@pytest.mark.parametrize("replayed_by", [None, "another"])
def test_redelivery_after_a_lost_retry_whose_place_is_taken(joblog, until, replayed_by):
    """Its old message does not run if it was requeued, or if it had a unique key until its end."""
    first, again = new_token("one"), new_token("one")
    joblog.core.transitions.write([start(first)])
    dead = end(first, state="dead")
    dead.row["dead_reason"] = "retry_lost"
    joblog.core.transitions.write([dead])
    joblog.Job.update(replayed_by=replayed_by).execute()
    unique = {"key": "key", "until": until, "ttl": 60_000}
    answer = joblog.core.transitions.write([start(again, unique=unique)])[JID]
    assert answer.granted == (replayed_by is None and until != "finished")


def test_tokens_of_one_delivery():
    """Tokens of one delivery share a prefix and differ; those of unknown deliveries share none."""
    assert new_token("one") != new_token("one")
    assert same_delivery(new_token("one"), new_token("one"))
    assert not same_delivery(new_token("one"), new_token("two"))
    assert not same_delivery(new_token(None), new_token(None))
    assert not same_delivery(None, new_token("one"))


@pytest.mark.parametrize(
    ("count", "events"),
    [
        (1, [start("a")]),
        (1, [Ended(row("finished", 1, "a", jid="x"))]),
        (1, [Started(row("started", 1, f"t{n}", jid=f"j{n}")) for n in range(8)]),
        (2, [end("a", state="dead")]),
    ],
)
def test_statements_of_a_batch(joblog, asked, count, events):
    """A batch takes one statement per table, however many jobs it has; MySQL also needs a query.

    On PostgreSQL, it takes one for all tables.
    """
    joblog.database.connect(reuse_if_open=True)
    if isinstance(joblog.database, PostgresqlDatabase):
        count = 1
    count *= 2 if isinstance(joblog.database, MySQLDatabase) else 1
    with asked() as texts:
        joblog.core.transitions.write([copy(event) for event in events])

    assert count == len(texts)


TOKENS = """
import os, random

from dramatiq_joblog.recording.tokens import new_token

random.seed(1)
mine = {new_token(None)}
random.seed(1)
mine.add(new_token(None))
reader, writer = os.pipe()
if os.fork() == 0:
    os.write(writer, new_token(None).encode())
    os._exit(0)
os.wait()
tokens = mine | {new_token(None), os.read(reader, 100).decode()}
assert len(tokens) == 4, tokens
assert {len(token) for token in tokens} == {28}
"""


def test_tokens_differ():
    """No two runs have the same token, whatever seed a job sets, in any process."""
    subprocess.run([sys.executable, "-c", TOKENS], check=True)


def line(jid, token, number=1):
    about = {"jid": jid, "token": token, "attempt": 1, "number": number, "time": NOW}
    return {**about, "level": "INFO", "logger": "shop", "text": f"line {number}"}


def mixed_batch():
    """Return a batch that writes rows of every table."""
    ended, begun = end("a", state="dead"), start("b")
    ended = dataclasses.replace(ended, lines=[line(JID, "a", 1), line(JID, "a", 2)])
    begun.row["jid"] = "other"
    return [ended, begun, Enqueued(row("enqueued", jid="sent"))]


def test_rows_of_every_table_in_one_batch(joblog):
    """A batch of runs, failures, lines and sent messages is written completely and idempotently."""
    for _ in range(2):
        answers = joblog.core.transitions.write(mixed_batch())
        assert answers.get("other", GRANTED).granted

    states = {job.jid: job.state for job in joblog.jobs}
    assert {JID: "dead", "other": "started", "sent": "enqueued"} == states
    job = told(joblog)
    assert ["a"] == [f.token for f in job.failures]
    assert ["line 1", "line 2"] == [each.text for each in job.lines]


def test_round_trips_of_a_batch(joblog, tmp_path):
    """Whatever a batch writes, PostgreSQL gets one statement, which commits."""
    if not isinstance(joblog.database, PostgresqlDatabase):
        pytest.skip("only PostgreSQL changes several tables in one statement")
    joblog.database.connect(reuse_if_open=True)
    connection = joblog.database.connection().pgconn
    # The first of its kind is prepared.
    joblog.core.transitions.write(mixed_batch())
    for model in (joblog.Job, joblog.Failure, joblog.Line):
        model.delete().execute()
    trace = tmp_path / "trace"
    with trace.open("w") as file:
        connection.trace(file.fileno())
        joblog.core.transitions.write(mixed_batch())
        connection.untrace()

    assert 1 == trace.read_text().count("ReadyForQuery")
    assert "dead" == told(joblog).state


def test_an_overtaken_run_in_a_batch(joblog):
    """A run considered interrupted that ends in a batch is corrected as if alone."""
    joblog.core.transitions.write([start("a")])
    joblog.core.transitions.write([start("b")])
    assert 1 == told(joblog).interruptions
    other = end("c", state="dead")
    other.row["jid"] = other.failure["jid"] = "other"
    joblog.core.transitions.write([end("a", state="retrying"), other])

    job = told(joblog)
    assert ("started", "b", None) == (job.state, job.token, job.interruptions)
    assert [("a", "retried")] == [(f.token, f.outcome) for f in job.failures]
    assert ["dead"] == [f.outcome for f in joblog.get("other").failures]


def test_more_lines_than_one_statement_takes(joblog):
    """A batch with any number of lines is written completely."""
    ended = [end("a"), end("b")]
    ended[1].row["jid"] = "other"
    ended = [
        dataclasses.replace(
            each, lines=[line(each.jid, each.row["token"], n) for n in range(1, 702)]
        )
        for each in ended
    ]
    joblog.core.transitions.write(ended)

    assert [701, 701] == [joblog.get(event.jid).lines.count() for event in ended]
    assert {"finished"} == {job.state for job in joblog.jobs}


# Late events: those that were kept on disk while the database was unavailable


@st.composite
def kept_lives(draw):
    """Draw a job whose runs were spooled by two processes, each in order, in any combined order."""
    events = life(draw, draw(st.integers(1, 4)), "run")[1:]
    events = [dataclasses.replace(event, replayed=True) for event in events]
    spools = [[], []]
    for at, event in enumerate(events):
        event.row["updated_at"] = NOW + at
        event.row["started_at"] = NOW + at - isinstance(event, Ended)
        if event.row["state"] in FINAL:
            event.row["finished_at"] = NOW + at
    for run in zip(events[::2], events[1::2], strict=True):
        spools[draw(st.integers(0, 1))] += run
    order = draw(st.permutations([0] * len(spools[0]) + [1] * len(spools[1])))
    return events, [spools[turn].pop(0) for turn in order]


@property_settings
@given(lives_and_order=kept_lives())
def test_two_spools_in_any_order(joblog, lives_and_order):
    """Whichever process reports first, the row has the last run, and each failure its own."""
    events, order = lives_and_order
    joblog.Job.delete().execute()
    joblog.Failure.delete().execute()
    joblog.core.transitions.write([enqueued()])
    for event in order:
        joblog.core.transitions.write([event])

    last = events[-1].row
    job = told(joblog)
    assert (last["state"], last["attempt"], last["token"]) == (job.state, job.attempt, job.token)
    failed = {
        e.failure["token"]: e.failure["outcome"]
        for e in events
        if isinstance(e, Ended) and e.failure
    }
    assert failed == {f.token: f.outcome for f in job.failures}
    assert job.interruptions is None


def kept(token, *, at, attempt=1, cut_off=False):
    event = start(token, attempt, replayed=True, cut_off=cut_off)
    event.row["started_at"] = NOW + at
    return event


def test_a_run_that_ended_with_its_process_is_lost(joblog):
    """A run reported after its process is gone is lost at once, and recorded."""
    joblog.core.transitions.write([kept("a", at=0, cut_off=True)])
    assert "lost" == told(joblog).state

    joblog.core.transitions.write([start("b")])
    joblog.core.transitions.write([end("b")])
    job = told(joblog)
    assert ("finished", ["interrupted"]) == (job.state, [f.outcome for f in job.failures])


@pytest.mark.parametrize("cut_off", [False, True])
def test_a_run_told_late_does_not_close_a_newer_one(joblog, cut_off):
    """A run that began before the current one does not affect it."""
    now = start("b")
    now.row["started_at"] = NOW + 10
    joblog.core.transitions.write([now])
    late = kept("a", at=0, cut_off=cut_off)
    joblog.core.transitions.write([late])

    job = told(joblog)
    assert ("started", "b", 1 if cut_off else None) == (job.state, job.token, job.interruptions)
    assert (["a"] if cut_off else []) == [f.token for f in job.failures]


def test_a_run_told_late_closes_an_older_one(joblog):
    """A run that began after the one on the row, or after its process is gone, closes that one."""
    joblog.core.transitions.write([start("a")])
    joblog.core.transitions.write([kept("b", at=10)])
    assert "b" == told(joblog).token

    gone = {"started_at": 0, "heartbeat_at": 0, "swept_at": 1, "timeout": 1, "threads": 1}
    joblog.Worker.create(process="gone", host="h", pid=1, **gone)
    joblog.Job.update(process="gone").execute()
    joblog.release()
    # By the clock of a host that is behind.
    joblog.core.transitions.write([kept("c", at=-3_600_000)])
    assert "c" == told(joblog).token


@pytest.mark.parametrize("state", ["finished", "dead", "skipped"])
def test_a_run_told_late_does_not_revive(joblog, state):
    """A run that began before the job's end does not change it; only a later one may begin."""
    joblog.core.transitions.write([start("b")])
    joblog.core.transitions.write([end("b", state=state)])
    joblog.core.transitions.write([kept("a", at=3)])
    assert (state, "b") == (told(joblog).state, told(joblog).token)

    joblog.core.transitions.write([kept("c", at=6)])
    assert "c" == told(joblog).token


@pytest.mark.parametrize("ends_first", [False, True])
def test_a_newer_attempt_told_late_decides(joblog, ends_first):
    """An older attempt that ran again, while the newer one was unknown, is not the end."""
    joblog.core.transitions.write([start("a")])
    again = start("a again", redelivered=True)
    again.row["started_at"] = NOW + 20
    joblog.core.transitions.write([again])
    newer = kept("b", at=10, attempt=2), end("b", attempt=2)
    dead = end("a again", state="dead")
    dead.row.update(started_at=NOW + 20, finished_at=NOW + 30)
    for event in (dead, *newer) if ends_first else (*newer, dead):
        joblog.core.transitions.write([event])

    job = told(joblog)
    assert ("finished", 2, "b", None) == (job.state, job.attempt, job.token, job.dead_reason)
    kept_runs = {f.token: f.outcome for f in job.failures}
    assert {"a": "interrupted", "a again": "dead"} == kept_runs
    assert 1 == job.interruptions


def test_a_newer_attempt_that_was_cut_off_is_lost(joblog):
    """A job whose newer attempt was lost with its process is lost, though an older one is dead."""
    joblog.core.transitions.write([start("a")])
    joblog.core.transitions.write([end("a", state="dead")])
    joblog.core.transitions.write([kept("b", at=-10, attempt=2, cut_off=True)])
    assert ("lost", 2) == (told(joblog).state, told(joblog).attempt)

    joblog.core.transitions.write([start("c", 2, redelivered=True)])
    joblog.core.transitions.write([end("c", attempt=2)])
    job = told(joblog)
    assert ("finished", "c") == (job.state, job.token)
    assert {"a": "dead", "b": "interrupted"} == {f.token: f.outcome for f in job.failures}


def test_a_presumed_interruption_is_not_counted(joblog):
    """A run considered interrupted that then ends is not counted as interrupted."""
    joblog.core.transitions.write([start("a")])
    joblog.core.transitions.write([start("b")])
    assert 1 == told(joblog).interruptions
    joblog.core.transitions.write([end("a", state="retrying")])

    assert told(joblog).interruptions is None


@pytest.mark.parametrize("ahead", [-3_600_000, 3_600_000])
def test_hosts_with_other_clocks(joblog, ahead):
    """A run of a host an hour ahead or behind has no negative queue time, and its duration."""
    worker = {"process": "p", "host": "h", "pid": 1, "timeout": 1, "threads": 1, "skew": ahead}
    joblog.Worker.create(**worker, started_at=NOW, heartbeat_at=NOW + 700)
    joblog.release()
    joblog.core.transitions.write([enqueued()])
    run = start("a")
    run.row.update(started_at=NOW + ahead, process="p")
    joblog.core.transitions.write([run])
    assert max(0, ahead) == told(joblog).queue_time

    joblog.core.transitions.write([start("b")])
    [failure] = told(joblog).failures
    assert 700 == failure.duration
