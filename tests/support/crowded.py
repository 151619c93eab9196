"""A log with everything that can be shown, and with names that are hard to show."""

from __future__ import annotations

import time
import uuid
from urllib.parse import quote

from dramatiq_joblog.states import FINAL, State

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000

LONG = "Donaudampfschifffahrtsgesellschaft_" * 5
ARABIC, HEBREW = "مستورد الأسعار", "ייבוא מחירים"
USERS = (
    "7",
    "a3f1c2d4-5e6f-4a7b-8c9d-0e1f2a3b4c5d",
    "anna.maria.schmidt-hohenzollern@very-long-subdomain.example.com",
    ARABIC,
    LONG,
    "🧑🏽‍🚀 rocket",
    None,
)
TYPES = ("import", "mail", "reconciliation", None, HEBREW, f"type_{LONG}")
ACTORS = ("import_prices", "send_mail", "reconcile", "shop.tasks.exports.nightly_export_of_orders")
ERRORS = (
    ("FeedError", "the feed of shop 4711 is closed"),
    ("ConnectionError", "https://api.shop.example/v2/" + "path/" * 40 + "?page=1"),
    ("KeyError", f"'{ARABIC}'"),
    (
        "sqlalchemy.exc.ProgrammingError",
        "(psycopg.errors.UndefinedColumn) column orders.shiped_at does not exist\n"
        "LINE 1: SELECT orders.id, orders.shiped_at FROM orders\n" + LONG,
    ),
)
TRACEBACK = """Traceback (most recent call last):
  File "/srv/shop/.venv/lib/python3.12/site-packages/dramatiq/worker.py", line 485, in process
    res = actor(*message.args, **message.kwargs)
  File "/srv/shop/jobs/prices.py", line 41, in import_prices
    rows = fetch(shop)
  File "/srv/shop/.venv/lib/python3.12/site-packages/httpx/_client.py", line 914, in send
    raise exc
  File "/srv/shop/jobs/feeds.py", line 12, in fetch
    raise FeedError(f"the feed of shop {shop} is closed")
FeedError: the feed of shop 4711 is closed
"""
KEYS = ("nightly", f"user:{USERS[1]}", f"{ARABIC}:{LONG}")
STATES = tuple(map(str, State))
#: All pages of such a log; the state of a job is in braces.
PAGES = {
    "overview": "/",
    "a week": "/?range=7d",
    "jobs": "/jobs",
    "dead jobs": "/jobs?q=state:dead",
    "no jobs": "/jobs?q=user:nobody",
    "no search": "/jobs?q=state:nonsense",
    "types": "/types",
    "a type": "/types/import",
    "a long type": "/types/" + quote(f"type_{LONG}"),
    "a user": "/users/7",
    "a user from the right": "/users/" + quote(ARABIC),
    "what changed": "/compare",
    "dead": "/dead",
    "queues": "/queues",
    "a queue": "/queues/default",
    "locks": "/locks",
    "workers": "/workers",
    "actions": "/actions",
    "alerts": "/alerts",
    "the zone": "/zone",
    "an error": "/nope",
    "a family": "/jobs/{family}",
    **{f"a {state} job": f"/jobs/{{{state}}}" for state in STATES},
    "run again": "/confirm/requeue?jid={dead}",
    "with other arguments": "/confirm/change?jid={dead}",
    "dismiss": "/confirm/dismiss?jid={dead}",
    "cancel": "/confirm/cancel?jid={enqueued}",
    "mute": "/confirm/mute?kind=lost",
}
#: The columns for which all rows have a value, because they are inserted together.
EMPTY = dict.fromkeys(
    (
        *("user_id", "job_type", "max_retries", "eta", "started_at", "finished_at", "duration"),
        *("queue_time", "error_type", "error_message", "dead_reason", "skip_reason", "worker"),
        *("process", "token", "section", "waiting_since", "meta", "progress", "parent_jid"),
        *("root_jid", "withheld", "note", "trace_id"),
    )
)


def crowd(joblog, *, many=240):
    """Fill a log, and return the jid of a job of each state, and of the first of a family.

    Parameters:
      joblog: The log, with existing tables.
      many: How many jobs have ended: a third of them in the last hour, the last in nine days.
    """
    now = int(time.time() * 1000)
    process = _workers(joblog, now)
    jobs = [_ended(n, many, now) for n in range(many)]
    family = _family(now)
    jobs += _active(now, process) + family
    jobs.sort(key=lambda job: job["created_at"])
    for begin in range(0, len(jobs), 20):
        joblog.Job.insert_many(jobs[begin : begin + 20]).execute()
    for job in jobs:
        _runs_of(joblog, job)
    _locks(joblog, jobs, process, now)
    for back, name in ((30 * MINUTE, "v412"), (2 * DAY, f"v411-{LONG}")):
        joblog.Deploy.create(at=now - back, name=name, who="ada")
    for n, user in enumerate(USERS):
        joblog.Action.create(
            at=now - n * HOUR, who=str(user), what="requeue", jid=jobs[n]["jid"], detail=LONG
        )
    _alerts(joblog, now)
    joblog.core.totals.catch_up(now)
    *_, last = joblog.problems()
    joblog.mute(last, until=now + DAY, reason=f"known, {LONG}", who=USERS[2])
    joblog.release()
    return {"family": family[0]["jid"]} | {str(job["state"]): job["jid"] for job in jobs}


def _alerts(joblog, now):
    state = joblog.core.tables.alert
    seen = {"first_seen_at": now - 9 * DAY, "seen_at": now}
    is_open = {"is_open": True, "since": now - HOUR, "count": 18, "summary": LONG}
    known = {"sent": "opened", "sent_at": now - HOUR, "search": "state:dead"}
    waits = {"pending": "repeated", "tries": 3, "error": f"ConnectionError: {LONG}"}
    state.create(key="dead", name=f"dead jobs of {LONG}", **is_open, **known, **waits, **seen)
    state.create(key="nightly", name="expected: nightly", expects="nightly", **seen)


def _jid(*names):
    return str(uuid.uuid5(uuid.NAMESPACE_OID, repr(names)))


def _job(n, at, **facts):
    return EMPTY | {
        "jid": _jid(n, at),
        "actor": ACTORS[n % 4],
        "queue": ("default", "mail", f"queue_{LONG}"[:120])[n % 11 % 3],
        "job_type": TYPES[n % 6],
        "user_id": USERS[n % 7],
        "attempt": 1,
        "enqueued_at": at,
        "created_at": at,
        "updated_at": at,
        "args": [4711, f"{ARABIC} {LONG}"],
        "kwargs": {"currency": "EUR", "pages": [1, 2], "shop": {"city": HEBREW}},
        **facts,
    }


def _ended(n, many, now):
    share = (n + 1) / many
    at = now - int(HOUR * share * 3 if share < 1 / 3 else 9 * DAY * share) - MINUTE
    took = 40 + n * n % 90_000
    state = "dead" if n % 5 == 0 else "skipped" if n % 17 == 0 else "finished"
    facts = {
        "state": state,
        "started_at": at + 300,
        "finished_at": at + took,
        "updated_at": at + took,
        "duration": took,
        "queue_time": 300,
        "worker": f"imports-{n % 3}.eu-central-1.shop.example:4194304:3",
        "token": f"{n:032x}",
        "meta": {"rows": n, LONG: ARABIC},
    }
    if state == "dead":
        error, text = ERRORS[n // 5 % 4]
        facts |= {"error_type": error, "error_message": text, "attempt": 3, "max_retries": 2}
        facts["dead_reason"] = "retries_exhausted"
    elif state == "skipped":
        facts["skip_reason"] = f"section {KEYS[2]} is held by job {_jid(n, 0)}"
    return _job(n, at, **facts)


def _active(now, process):
    runs = {"process": process, "worker": "imports-1:812:3", "started_at": now - 5 * MINUTE}
    error = dict(zip(("error_type", "error_message"), ERRORS[1], strict=True))
    waits = {"section": KEYS[2], "waiting_since": now - 4 * MINUTE, "eta": now + MINUTE}
    progress = {"done": 40, "total": 120, "text": f"{ARABIC} {LONG}"}
    states = (
        {"state": "enqueued"},
        {"state": "delayed", "eta": now + HOUR},
        {"state": "waiting", **waits},
        {"state": "waiting", **waits, "section": KEYS[0]},
        {"state": "started", **runs, "progress": progress, "token": "a" * 32, "section": KEYS[0]},
        {"state": "retrying", **error, "eta": now + MINUTE, "attempt": 2, "token": "b" * 32},
        {"state": "lost", "worker": "imports-9:17:3", "token": "c" * 32},
    )
    # No worker has taken a job for an hour, so that there is a problem.
    return [
        _job(1_000 + n, now - (HOUR if n % 2 else 6 * MINUTE), **states[n % 7]) for n in range(35)
    ]


def _family(now):
    root = _ended(4_242, 5_000, now) | {"state": "finished", "error_type": None}
    sent = now - 20 * MINUTE - 400
    root |= {"jid": _jid("root", now), "created_at": sent, "enqueued_at": sent}
    root |= {"started_at": now - 20 * MINUTE, "finished_at": now - 19 * MINUTE}
    root |= {"duration": MINUTE, "actor": "nightly", "job_type": "nightly"}
    family = [root]
    for n in range(24):
        at = now - 19 * MINUTE + n * 20_000
        parent = family[n // 6]["jid"]
        child = _ended(20 * n + 3, 5_000, now) | {"created_at": at, "enqueued_at": at}
        child |= {"started_at": at + 5_000, "finished_at": at + 60_000, "duration": 55_000}
        child |= {"jid": _jid("child", n), "parent_jid": parent}
        child |= {"root_jid": root["jid"], "token": f"f{n:031x}"}
        if n in {9, 20}:
            error, text = ERRORS[n % 4]
            child |= {"state": "dead", "error_type": error, "error_message": text, "attempt": 2}
            child |= {"dead_reason": "retries_exhausted"}
        family.append(child)
    return family


def _runs_of(joblog, job):
    """Write the failed runs of a job, and its log lines."""
    if job["token"] is None:
        return
    if job["error_type"]:
        for attempt in range(1, job["attempt"] + 1):
            is_last = job["state"] == "dead" and attempt == job["attempt"]
            joblog.Failure.create(
                **{name: job[name] for name in ("jid", "error_type", "error_message", "worker")},
                token=job["token"] if attempt == job["attempt"] else f"{attempt}{job['jid'][:30]}",
                attempt=attempt,
                outcome="dead" if is_last else "retried",
                started_at=job["created_at"],
                finished_at=job["created_at"] + 900,
                duration=900,
                traceback=TRACEBACK,
            )
    if job["state"] in FINAL:
        return
    for number, text in enumerate(("begins", f"{ARABIC} {LONG}", "row 40 of 120")):
        joblog.Line.create(
            **{name: job[name] for name in ("jid", "token", "attempt")},
            number=number,
            time=job["created_at"] + number,
            level=("INFO", "WARNING", "ERROR")[number],
            logger="shop.jobs.prices",
            text=text,
        )


def _workers(joblog, now):
    facts = {"threads": 8, "timeout": 60_000, "boot_id": "6c1e", "started_at": now - 3 * HOUR}
    for n in range(3):
        joblog.Worker.create(
            process=f"live{n}",
            host=f"imports-{n}.eu-central-1.shop.example",
            pid=4_194_300 + n,
            queues=["default", "mail", f"queue_{LONG}"[:120]][: n + 1],
            heartbeat_at=now + HOUR,
            **facts,
        )
    gone = facts | {"heartbeat_at": now - HOUR, "swept_at": now - HOUR}
    joblog.Worker.create(process="gone", host="imports-9", pid=17, queues=["default"], **gone)
    return "live0"


def _locks(joblog, jobs, process, now):
    holder = next(job for job in jobs if job["state"] == "started")
    facts = {"kind": "section", "slot": 0, "ttl": 60_000, "process": process}
    for n, key in enumerate(KEYS):
        held = {"owner": holder["jid"], "token": holder["token"], "acquired_at": now - n * HOUR}
        # The last of them is free, but has waiters.
        free = {} if n < 2 else {"owner": None, "token": None}
        joblog.Lock.create(
            key=key, fence=n + 1, last_fence=n + 1, expires_at=now + HOUR, **facts | held | free
        )
