"""The screen of ``locks``: holders, waiters and the usage of rates."""

from __future__ import annotations

import json
import re
import time

import pytest

from dramatiq_joblog.locking.needs import RATE, Need

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def put_in_line(job_factory, jid, key):
    now = time.time_ns() // 1_000_000
    waits = {"section": key, "waiting_since": now - 90_000, "eta": now + 60_000}
    job_factory(jid=jid, state="waiting", started_at=None, finished_at=None, **waits)


def test_who_waits_and_what_is_used(joblog, job_factory, terminal, database_url):
    """Free keys are shown too, if jobs wait for them or they are rates."""
    for n in range(3):
        put_in_line(job_factory, f"job-{n}", "shopify:7")
    joblog.set_limit("erp", 2, who="ada")
    with joblog.database.connection_context(), joblog.database.atomic():
        rate = Need(RATE, "shopify:7", 40, "wait", None, "dead", 60_000)
        joblog.core.locks.rates.take(rate, 37)

    shown = terminal("--database", database_url, "locks")
    for text in ("Waiting", "shopify:7", "Starts by rates", "37"):
        assert text in shown
    assert re.search(r"erp +2 +ada", shown)
    shown = terminal("--database", database_url, "locks", "shopify:7")
    assert "  3  " in shown
    assert "job-2" in shown
    assert "erp" not in shown


def test_a_limit_of_a_long_key(joblog, terminal, database_url):
    """However long a key is, the limit set for it is shown, with its author."""
    joblog.set_limit("warehouse:" + "x" * 200, 3, who="ada")
    assert re.search(r"warehouse:x+… +3 +ada", terminal("--database", database_url, "locks"))


def test_programs_get_all_of_it(joblog, job_factory, ask):
    """A pipe and JSON have the held keys, the waiters, the rates and the limits set."""
    for n in range(2):
        put_in_line(job_factory, f"job-{n}", "erp")
    joblog.set_limit("shopify:7", 2, who="ada")
    with joblog.database.connection_context(), joblog.database.atomic():
        rate = Need(RATE, "shopify:7", 40, "wait", None, "dead", 60_000)
        joblog.core.locks.rates.take(rate, 3)

    with joblog.lock("mine") as lease:
        found = json.loads(ask("locks", "--json").stdout)
        piped = ask("locks").stdout.splitlines()
    held, waiting, used, limit = found
    assert ("section", "mine", lease.fence, []) == tuple(
        held[name] for name in ("kind", "key", "fence", "waiters")
    )
    assert ("waiting", "erp", ["job-0", "job-1"]) == tuple(
        waiting[name] for name in ("kind", "key", "waiters")
    )
    assert ("rate", "shopify:7", 3, 60_000) == tuple(
        used[name] for name in ("kind", "key", "started", "per")
    )
    assert ("limit", "shopify:7", 2, "ada") == tuple(
        limit[name] for name in ("kind", "key", "limit", "who")
    )
    rows = [row.split("\t") for row in piped]
    assert ["section", "waiting", "rate", "limit"] == [row[7] for row in rows]
    since = held["acquired_at"], waiting["since"], used["last"], limit["since"]
    assert all(re.fullmatch(r"[-\d]+T[:\d]+\.\d{3}Z", each) for each in since)
    assert ["0", "2", "3", "2"] == [row[5] for row in rows]
    only = json.loads(ask("locks", "erp", "--json").stdout)
    assert [("waiting", "erp")] == [(each["kind"], each["key"]) for each in only]


def test_nothing_to_show(joblog, terminal, database_url):
    """A key without holders, waiters and starts is not shown."""
    assert "'nothing' is not held" in terminal(
        "--database", database_url, "locks", "nothing", code=1
    )
