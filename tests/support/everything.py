"""Runs all queries of a log, and parses the results strictly."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from urllib.parse import quote

from click.testing import CliRunner
from starlette.testclient import TestClient

from dramatiq_joblog.cli.main import program
from dramatiq_joblog.reading.timeline import timeline
from dramatiq_joblog.web import dashboard

PAGES = ("/", "/jobs", "/dead", "/locks", "/workers", "/actions")
DATA = ("/overview.json", "/jobs.json", "/dead.json", "/locks.json", "/workers.json")


def strict(text):
    """Parse JSON, refusing NaN and unpaired surrogates."""
    value = json.loads(text, parse_constant=_refuse)
    json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    return value


def _refuse(name):
    raise ValueError(f"{name} is no JSON")


def ask_everything(joblog, url, *, some=20):
    """Query a log by its functions, the dashboard and the command line.

    *some* jobs, spread over all, are each shown on the dashboard and in a terminal.
    """
    ask_the_log(joblog, some)
    ask_the_page(joblog, some)
    ask_the_command(url, some)


def _spread(items, some):
    return items[:: max(1, len(items) // some)]


def ask_the_log(joblog, some):
    """Query by functions."""
    now = datetime.now(timezone.utc)
    jobs = list(joblog.jobs)
    for job in jobs:
        assert json.dumps(job.as_dict(), allow_nan=False, ensure_ascii=False).encode()
        timeline(job, (), now)
    for job in _spread(jobs, some):
        timeline(job, list(job.failures), now)
        for related in (job.lines, job.children, job.family):
            list(related)
        assert joblog.get(job.jid).id == job.id
        assert joblog.jobs.for_user(job.user_id).of_actor(job.actor).in_queue(job.queue).count()
        assert job.job_type is None or joblog.jobs.of_type(job.job_type).count()
    seen, page = [], joblog.jobs.page(limit=50)
    while True:
        seen += [job.id for job in page.jobs]
        if page.older is None:
            break
        page = joblog.jobs.page(limit=50, before=page.older)
    assert sorted(seen) == sorted(job.id for job in jobs)
    for scope in ("active", "in_progress", "dead", "finished", "skipped", "waiting", "lost"):
        list(getattr(joblog.jobs, scope)())
    list(joblog.jobs.since(now - timedelta(days=1)).until(now + timedelta(days=1)))
    for question in (joblog.counts, joblog.oldest, joblog.dead_groups, joblog.doctor):
        question()
    joblog.stats(since=now - timedelta(days=1), by="actor")
    for key in ("actor", "error", "id", "queue", "section", "state", "type", "user", "worker"):
        joblog.complete(key)


def ask_the_page(joblog, some):
    """Query by the dashboard, including its JSON."""
    app = dashboard(joblog, authorize=lambda request: "all")
    with TestClient(app, base_url="http://localhost", client=("127.0.0.1", 50_000)) as asking:
        for path in (*PAGES, *(f"/jobs?q=state:{s}" for s in ("dead", "finished", "active"))):
            answer = asking.get(path)
            assert answer.status_code == 200, (path, answer.text)
        for path in DATA:
            answer = asking.get(path)
            assert answer.status_code == 200, (path, answer.text)
            strict(answer.text)
        assert asking.get("/metrics").status_code == 200
        numbers = [job.jid for job in joblog.jobs]
        for jid in _spread(numbers, some):
            path = f"/jobs/{quote(jid, safe='')}"
            answer = asking.get(path)
            assert answer.status_code == 200, (jid, answer.text)
            strict(asking.get(path, headers={"accept": "application/json"}).text)
        for what in ("requeue", "dismiss", "cancel"):
            answer = asking.get(f"/confirm/{what}", params={"jid": numbers[:50]})
            assert answer.status_code == 200, answer.text


def ask_the_command(url, some):
    """Query by the command line: lists, each job, and the export."""

    def ask(*arguments):
        done = CliRunner().invoke(program, ["--database", url, *arguments])
        assert done.exit_code == 0, (arguments, done.output, done.exception)
        return done.output

    ask("list", "--limit", "1000")
    strict(ask("--json", "list", "--limit", "1000"))
    rows = [strict(line) for line in ask("export", "--failures").splitlines()]
    ask("export", "--format", "csv")
    ask("stats")
    for row in _spread(rows, some):
        if row["jid"] and not row["jid"].startswith("-") and row["jid"].isprintable():
            ask("show", row["jid"])
