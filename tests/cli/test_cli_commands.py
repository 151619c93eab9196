"""Commands that count, change and serve."""

from __future__ import annotations

import csv
import io
import json
import re
import signal
import subprocess
import time
import urllib.request

import pytest
from commands import PROGRAM

from dramatiq_joblog.cli.confirm import myself


@pytest.fixture
def shop(tmp_path, database_url, redis_url, cli):
    """Write an application with a real broker; return a function that runs the command for it."""
    (tmp_path / "shop.py").write_text(
        f"""
import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq_joblog import JobLog, JobLogMiddleware

joblog = JobLog({database_url!r})
joblog.create_tables()
broker = RedisBroker(url={redis_url!r})
broker.add_middleware(JobLogMiddleware(joblog))
dramatiq.set_broker(broker)

@dramatiq.actor(job_type="import", max_retries=0)
def load(number):
    raise ValueError(number)
"""
    )

    def run(*arguments, code=0, input=""):
        done = cli("--app", "shop:joblog", *arguments, input=input)
        assert code == done.returncode, done.stdout + done.stderr
        return done

    return run


def dead(job_factory, jid, **more):
    row = {"state": "dead", "actor": "load", "job_type": "import", "args": [1], "kwargs": {}}
    return job_factory(jid=jid, error_type="ValueError", options={}, **row | more)


# requeue, dismiss, unlock


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.full
def test_jobs_run_again_on_the_applications_broker(shop, joblog, job_factory):
    """``requeue`` shows the number, asks, and sends; the new jobs refer to the old ones."""
    for number in range(3):
        dead(job_factory, f"dead{number}", args=[number])
    job_factory(jid="done", actor="load", job_type="import", args=[9], kwargs={}, options={})

    told = shop("requeue", "type:import", code=2).stderr
    assert "3 jobs (3 import)" in told
    assert "will run again: there is no terminal to ask on, so nothing was done; give --yes" in told
    told = shop("requeue", "type:import", "--dry-run")
    assert ["dead0", "dead1", "dead2"] == [r.split("\t")[0] for r in told.stdout.splitlines()]
    assert 4 == joblog.jobs.count()

    sent = json.loads(shop("requeue", "type:import", "--yes", "--json").stdout)
    assert {} == sent["refused"]
    assert ["dead0", "dead1", "dead2"] == [one["replay_of"] for one in sent["sent"]]
    news = [one["jid"] for one in sent["sent"]]
    assert news == [joblog.get(f"dead{n}").replayed_by for n in range(3)]
    assert [[0], [1], [2]] == [joblog.get(jid).args for jid in news]
    assert {myself()} == {action.who for action in joblog.actions}
    assert "no job that matches can be run again" in shop("requeue", "type:import", code=1).stderr
    # A job that is named is meant.
    assert "runs dead0 again" in shop("requeue", "dead0").stdout
    joblog.release()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_running_again_needs_the_application(joblog, job_factory, ask):
    """Without the application, ``requeue`` explains the error and the option to use."""
    dead(job_factory, "dead0")

    done = ask("requeue", "dead0", code=2)
    assert "running a job again needs the application's broker" in done.stderr
    assert "--app module:joblog" in done.stderr


def test_dead_jobs_are_dismissed(joblog, job_factory, ask):
    """``dismiss`` asks before several, keeps the jobs, and is recorded with the user."""
    for jid in ("aa1", "aa2", "bb3"):
        dead(job_factory, jid)
    job_factory(jid="cc4")

    assert "1 job dismissed." in ask("dismiss", "bb").stdout
    assert "2 jobs (2 import)" in ask("dismiss", "type:import", code=2).stderr
    assert ["aa1", "aa2"] == json.loads(ask("dismiss", "type:import", "--yes", "--json").stdout)[
        "dismissed"
    ]
    ask("list", "state:dead", code=1)
    assert "none of them is dead" in ask("dismiss", "cc4", code=1).stderr
    assert "which jobs?" in ask("dismiss", code=2).stderr
    assert (
        "is a jid, and cannot be combined with other words"
        in ask("dismiss", "x", "type:a", code=2).stderr
    )
    actions = json.loads(ask("actions", "--json").stdout)
    assert [("dismiss", "aa2"), ("dismiss", "aa1"), ("dismiss", "bb3")] == [
        (a["what"], a["jid"]) for a in actions
    ]
    assert 3 == len(ask("actions").stdout.splitlines())


def test_jobs_are_given_up(joblog, job_factory, ask):
    """``cancel`` always asks, refuses running jobs with a reason, and is recorded with the user."""
    states = {"aa1": "lost", "aa2": "lost", "bb3": "enqueued", "cc4": "started", "dd5": "dead"}
    for jid, state in states.items():
        error = "KeyError" if jid == "bb3" else None
        row = {"state": state, "job_type": "import", "finished_at": None, "error_type": error}
        job_factory(jid=jid, **row)

    told = ask("cancel", "type:import", code=2).stderr
    assert "2 jobs (2 import), sent within" in told
    assert ", 2 lost, will become dead and not run: there is no terminal to ask on" in told
    done = ask("cancel", "type:import", "--yes", "--json", "--reason", "flushed").stdout
    assert {"cancelled": ["aa1", "aa2"], "refused": {}} == json.loads(done)
    assert "no job that matches can be cancelled" in ask("cancel", "type:import", code=1).stderr
    assert "1 job (1 import), 1 enqueued, will become dead" in ask("cancel", "bb", code=2).stderr
    assert "1 job cancelled." in ask("cancel", "state:enqueued", "-y").stdout
    assert "\tcancelled, KeyError\n" in ask("list", "id:bb3").stdout
    assert "\tcancelled\n" in ask("list", "id:aa1").stdout

    told = ask("cancel", "cc4", "-y", code=1).stderr
    assert "job cc4 cannot be cancelled: it is started, and the log cannot stop code" in told
    told = ask("cancel", "cc4", "dd5", "-y", code=1).stderr
    assert "not all could be cancelled: 1 job: it is started" in told
    assert "; 1 job: it is dead already" in told
    assert "job dd5 cannot be cancelled: it is dead already" in ask("cancel", "dd5", code=1).stderr
    assert ["aa1", "aa2", "bb3", "dd5"] == sorted(job.jid for job in joblog.jobs.dead())
    assert ["was enqueued", "was lost: flushed", "was lost: flushed"] == [
        action["detail"] for action in json.loads(ask("actions", "--json").stdout)
    ]


def test_a_limit_is_set(joblog, ask):
    """``limit`` sets a key's limit for a time, or without end, and removes it."""
    assert "The limit of erp is 0 until " in ask("limit", "erp", 0, "--until", "2h").stdout
    [limit] = joblog.limits
    assert 2 * 3600 == pytest.approx((limit.until - joblog.now()).total_seconds(), abs=60)
    assert '"limit": 3' in ask("limit", "erp", 3, "--json").stdout
    for odd in ("many", "-1", "1.5", "-1.5", "", "9" * 5000, 2**31, "\N{SUPERSCRIPT TWO}"):
        said = ask("limit", "erp", odd, code=2).stderr
        assert "is not a limit: use a whole number" in said, odd
        assert 1 == len(said.splitlines())
    assert "which is over" in ask("limit", "erp", 1, "--until", "2020-01-01", code=2).stderr
    assert "The limit of erp is as set in the code." in ask("limit", "erp", "code").stdout
    assert [] == joblog.limits
    assert {("limit", "erp", myself())} == {(a.what, a.key, a.who) for a in joblog.actions}
    joblog.release()


def test_a_section_is_freed_by_hand(joblog, ask):
    """``unlock`` shows the holder, and requires a reason, and with --yes the fence."""
    with joblog.lock("finance:42") as lease:
        assert "needs a --reason" in ask("unlock", "finance:42", code=2).stderr
        done = ask("unlock", "finance:42", "--reason", "gone", code=2)
        assert "'finance:42' will be taken from" in done.stderr
        assert "name the holder by --fence" in ask("unlock", "finance:42", "--yes", code=2).stderr
        free = ("unlock", "finance:42", "--reason", "it burned", "--yes", "--fence")
        assert "not held with fence 99" in ask(*free, 99, code=1).stderr
        row = ask("locks", "finance:42").stdout.rstrip("\n").split("\t")
        assert ["finance:42", str(lease.fence), "0"] == [row[0], row[4], row[5]]
        assert "finance:42 is free." in ask(*free, lease.fence).stdout
        ask("locks", code=1)
    (action,) = joblog.actions
    assert ("unlock", "finance:42", myself()) == (action.what, action.key, action.who)
    assert "'finance:42' is not held" in ask(*free, 1, code=1).stderr
    joblog.release()


@pytest.mark.full
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_question_is_asked(joblog, job_factory, terminal, database_url, tmp_path):
    """On a terminal, a command shows its effects and asks; after no, it exits with 2 unchanged."""
    for jid in ("aa1", "aa2"):
        dead(job_factory, jid)
    dismiss = ("--database", database_url, "dismiss", "type:import")

    shown = terminal(*dismiss, answer="n\n", code=2)
    assert "2 jobs (2 import), sent within " in shown
    assert "will be dismissed.\nDo it? [y/N]: " in shown
    assert shown.endswith("dramatiq-joblog: nothing was done\n")
    assert 2 == joblog.jobs.dead().undismissed().count()
    assert terminal(*dismiss, answer="y\n").endswith("2 jobs dismissed.\n")
    with joblog.lock("k"):
        unlock = ("--database", database_url, "unlock", "k")
        shown = terminal(*unlock, answer="it burned\nn\n", code=2)
    assert "Reason: " in shown
    assert "'k' will be taken from " in shown
    joblog.release()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.full
def test_long_work_shows_how_it_goes_on(joblog, job_factory, terminal, database_url, tmp_path):
    """A progress bar is drawn on standard error while jobs are written to a file."""
    for _ in range(250):
        job_factory(finished_at=1, created_at=1)
    with (tmp_path / "jobs.jsonl").open("wb") as file:
        shown = terminal("--database", database_url, "export", stdout=file)
    assert "exporting" in shown
    assert "200 of 250" in shown
    rows = (tmp_path / "jobs.jsonl").read_text().splitlines()
    assert 250 == len([json.loads(row) for row in rows])

    prune = ("--database", database_url, "prune", "--keep", "finished=1d", "--yes")
    shown = terminal(*prune, "--batch", 100)
    assert "250 of 250" in shown
    assert shown.endswith("250 finished jobs deleted.\n")


# stats, doctor


def test_numbers(joblog, job_factory, ask, terminal, database_url):
    """``stats`` shows states, throughput, times by type and errors, as text and JSON."""
    for number in range(1, 5):
        job_factory(job_type="import", duration=number * 100, queue_time=5)
    dead(job_factory, "dead0", duration=70, token="t")
    now = joblog.now()
    joblog.Failure.create(
        jid="dead0",
        token="t",
        attempt=1,
        outcome="dead",
        started_at=now,
        finished_at=now,
        duration=70,
        error_type="ValueError",
    )
    job_factory(jid="slow", state="enqueued", started_at=None, finished_at=None, queue="mail")

    told = json.loads(ask("stats", "--since", "1h", "--json").stdout)
    assert {"count": 4, "capped": False} == told["counts"]["finished"]
    assert (4, 1) == (sum(told["series"]["finished"]), sum(told["series"]["dead"]))
    (group,) = told["groups"]
    assert ("import", 4, 1) == (group["name"], group["counts"]["finished"], group["counts"]["dead"])
    (error,) = (e for e in told["errors"] if e["error_type"] == "ValueError")
    assert ("load", 1, 1, len(told["times"])) == (
        *(error["actor"], error["count"], sum(error["series"]), len(error["series"])),
    )
    assert ["slow"] == [job["jid"] for job in told["oldest"]]
    text = ask("stats", "--since", "1h").stdout
    assert "✓ finished         4" in text
    assert "\nimport\t4\t1\t" in text
    assert "\nslow\t" in text
    assert "is not a time" in ask("stats", "--since", "soon", code=2).stderr

    seen = terminal("--database", database_url, "stats")
    assert "Counting the jobs" in seen
    assert re.search(r"ValueError +\S*load +1 .*·.*█", seen)
    joblog.core.totals.catch_up(int(time.time() * 1000))
    assert "Counting" not in terminal("--database", database_url, "stats")


def test_the_doctor_is_asked(joblog, job_factory, ask):
    """``doctor`` reports its checks; a fault has its cure, and is exit 1."""
    well = all(finding.ok for finding in joblog.doctor())
    assert "✓ schema " in ask("doctor", code=int(not well)).stdout

    job_factory(
        state="enqueued",
        started_at=None,
        finished_at=None,
        enqueued_at=1,
        created_at=1,
        updated_at=1,
    )
    assert "■ queues " in ask("doctor", code=1).stdout
    found = {row["name"]: row for row in json.loads(ask("doctor", "--json", code=1).stdout)}
    assert not found["queues"]["ok"]
    assert found["queues"]["cure"]


# prune


def test_old_jobs_are_deleted(joblog, job_factory, ask):
    """``prune`` shows the number of old jobs, asks, deletes only those, and is recorded."""
    old = int(time.time() * 1000) - 8 * 86_400_000
    for _ in range(3):
        job_factory(finished_at=old, created_at=old, updated_at=old)
    dead(job_factory, "old", finished_at=old)
    dead(job_factory, "new")
    job_factory(state="retrying", finished_at=None, created_at=old)
    week = ("--keep", "finished=7d")

    assert "how long are jobs kept?" in ask("prune", code=2).stderr
    assert "'waiting=7d' is not understood" in ask("prune", "--keep", "waiting=7d", code=2).stderr
    assert "is not a time" in ask("prune", "--keep", "dead=soon", code=2).stderr
    assert "3 finished jobs would be deleted." in ask("prune", *week, "--dry-run").stdout
    done = ask("prune", *week, "--keep", "dead=7d", code=2)
    assert "1 dead and 3 finished jobs will be deleted: there is no terminal" in done.stderr
    assert 6 == joblog.jobs.count()
    assert "3 finished jobs deleted." in ask("prune", *week, "--yes").stdout
    assert {"dead": 1} == json.loads(ask("prune", "--keep", "dead=1d", "--yes", "--json").stdout)
    assert "No job is that old." in ask("prune", *week).stdout
    assert {"dead", "retrying"} == {str(job.state) for job in joblog.jobs}
    assert ["1 dead job", "3 finished jobs"] == [action.detail for action in joblog.actions]


# export


def test_jobs_are_exported(joblog, job_factory, ask, tmp_path):
    """``export`` writes all jobs that match, in JSON lines or CSV, with all their fields."""
    made = [job_factory(actor="wörk", args=[n], kwargs={"a": "b,\n"}).jid for n in range(3)]
    dead(job_factory, "dead0")

    rows = [json.loads(line) for line in ask("export", "actor:wörk").stdout.splitlines()]
    assert made[::-1] == [row["jid"] for row in rows]
    assert joblog.get(made[2]).as_dict() == rows[0]
    file = tmp_path / "jobs.csv"
    assert "" == ask("export", "--format", "csv", "--output", file).output
    table = list(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"), newline="")))
    assert {*made, "dead0"} == {row["jid"] for row in table}
    assert '{"a": "b,\\n"}' == table[-1]["kwargs"]
    joblog.Failure.create(jid="dead0", token="t", attempt=1, outcome="dead")
    (row,) = map(json.loads, ask("export", "--failures", "id:dead0").stdout.splitlines())
    assert ["dead"] == [failure["outcome"] for failure in row["failures"]]
    assert "no job matches" in ask("export", "user:9", code=1).stderr
    assert "cannot be written" in ask("export", "-o", "/nowhere/x", code=2).stderr
    assert "does not fit" in ask("export", "--failures", "--format", "csv", code=2).stderr


# web


@pytest.mark.full
def test_the_page_is_served(joblog, job_factory, database_url):
    """``web`` prints the dashboard's URL, serves it, and ends with Ctrl-C."""
    dead(job_factory, "dead0")
    with subprocess.Popen(
        [PROGRAM, "--database", database_url, "web", "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        url = json.loads(process.stdout.readline())["url"]
        address, _, key = url.partition("?key=")
        request = urllib.request.Request(f"{address}jobs?q=state:dead")
        request.add_header("Authorization", f"Bearer {key}")
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert "dead0" in answer.read().decode()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)

    assert (130, "") == (process.returncode, errors)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_port_that_is_taken(joblog, ask):
    """A port that cannot be used is reported in a sentence."""
    done = ask("web", "--host", "203.0.113.1", "--port", "1", code=3)

    assert "cannot listen on 203.0.113.1 port 1: " in done.stderr
