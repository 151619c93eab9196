"""``python -m example_app.week FOLDER``: a week of a small company, as the page shows it.

Its jobs are made up, as a week cannot be waited for; the page that shows them is the real one.
A supplier's feed was down for half an hour on one day, a worker ran out of memory on another, and
this morning's deploy broke an import that nobody has looked at yet.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from dramatiq_joblog import Alert, Expect, JobLog
from dramatiq_joblog.web import export

from .data import NAMES, SYMBOLS

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
DAYS = 7
HOSTS = ("worker-1", "worker-2")
#: Types of jobs: the actor, its queue, its usual time, and how many times as long one may take.
KINDS = {
    "import": ("import_prices", "imports", 2_400, 3.0),
    "reconciliation": ("reconcile", "default", 900, 2.0),
    "user_verification": ("verify", "default", 350, 2.0),
    "mail": ("send_mail", "mail", 180, 2.5),
    "report": ("render_report", "default", 5_200, 1.6),
    "nightly_report": ("nightly_report", "default", 1_500, 1.3),
}
FEED_DOWN = ("FeedUnavailable", "503 from https://feeds.example/v1/{symbol}: maintenance")
NO_CURRENCY = ("KeyError", "'currency'")
TRACEBACK = """Traceback (most recent call last):
  File "/srv/shop/.venv/lib/python3.12/site-packages/dramatiq/worker.py", line 485, in process_message
    res = actor(*message.args, **message.kwargs)
  File "/srv/shop/.venv/lib/python3.12/site-packages/dramatiq/actor.py", line 182, in __call__
    return self.fn(*args, **kwargs)
  File "/srv/shop/jobs/prices.py", line 58, in import_prices
    rows = [as_row(line) for line in fetch(symbol)]
  File "/srv/shop/jobs/{module}.py", line {line}, in {function}
    {code}
{error}: {message}
"""


@dataclass
class Week:
    """The rows of a week, before they are written."""

    now: int
    random: random.Random = field(default_factory=lambda: random.Random(7))  # noqa: S311
    jobs: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)
    lines: list[dict[str, Any]] = field(default_factory=list)
    actions: list[dict[str, Any]] = field(default_factory=list)

    def send(self, kind: str, at: int, user: int | None = None, **facts: Any) -> dict[str, Any]:
        """Add a job that finished at its first try, unless *facts* say otherwise."""
        actor, queue, usual, spread = KINDS[kind]
        waited = int(self.random.lognormvariate(4.2, 0.8))
        took = int(usual * self.random.uniform(1 / spread, spread))
        host = self.random.choice(HOSTS)
        row: dict[str, Any] = {
            "jid": str(uuid.UUID(int=self.random.getrandbits(128), version=4)),
            "actor": actor,
            "queue": queue,
            "job_type": kind,
            "user_id": None if user is None else str(user),
            "state": "finished",
            "attempt": 1,
            "max_retries": 3,
            "eta": None,
            "enqueued_at": at,
            "created_at": at,
            "started_at": at + waited,
            "finished_at": at + waited + took,
            "updated_at": at + waited + took,
            "duration": took,
            "queue_time": waited,
            "worker": f"{host}:4121:{self.random.randint(1, 8)}",
            "process": host,
            "token": f"{self.random.getrandbits(128):032x}",
            "args": [] if user is None else [user],
            "kwargs": {},
            **dict.fromkeys(("error_type", "error_message", "dead_reason", "skip_reason")),
            **dict.fromkeys(("section", "waiting_since", "meta", "progress", "parent_jid")),
            **dict.fromkeys(("root_jid", "replay_of", "replayed_by")),
        }
        if kind in {"import", "reconciliation"}:
            row["section"] = f"finance:{user}"
        row |= facts
        self.jobs.append(row)
        return row

    def fail(
        self, job: dict[str, Any], error: tuple[str, str], *, runs: int, is_dead: bool
    ) -> None:
        """Let a job fail so many times: the last of them is its end, or it waits for a retry."""
        kind, message = error[0], error[1].format(symbol=(job["args"] or [0, "AAPL"])[-1])
        at = job["started_at"]
        for attempt in range(1, runs + 1):
            token = f"{self.random.getrandbits(128):032x}"
            last = attempt == runs
            took = self.random.randint(90, 400)
            self.failures.append(
                {
                    "jid": job["jid"],
                    "token": token,
                    "attempt": attempt,
                    "outcome": "dead" if last and is_dead else "retried",
                    "started_at": at,
                    "finished_at": at + took,
                    "duration": took,
                    "error_type": kind,
                    "error_message": message,
                    "traceback": traceback_of(kind, message),
                    "worker": job["worker"],
                }
            )
            self.log(job, token, attempt, at, f"{kind} in run {attempt}: {message}")
            job |= {"token": token, "attempt": attempt, "started_at": at}
            job |= {"finished_at": at + took, "updated_at": at + took, "duration": took}
            at += took + 15_000 * 2 ** (attempt - 1)
        job |= {"error_type": kind, "error_message": message}
        if is_dead:
            job |= {"state": "dead", "dead_reason": "retries_exhausted"}
        else:
            job |= {
                "state": "retrying",
                "finished_at": None,
                "duration": None,
                "eta": self.now + 45_000,
            }

    def log(self, job: dict[str, Any], token: str, attempt: int, at: int, text: str) -> None:
        """Add what a run logged."""
        symbol = (job["args"] or [""])[-1]
        for number, (level, line) in enumerate(
            (("INFO", f"fetching the feed of {symbol}"), ("ERROR", text))
        ):
            self.lines.append(
                {
                    "jid": job["jid"],
                    "token": token,
                    "attempt": attempt,
                    "number": number,
                    "time": at + 40 * number,
                    "level": level,
                    "logger": "shop.jobs",
                    "text": line,
                }
            )

    def act(self, at: int, who: str, what: str, jid: str, detail: str | None = None) -> None:
        """Add what somebody did."""
        self.actions.append({"at": at, "who": who, "what": what, "jid": jid, "detail": detail})


def traceback_of(error: str, message: str) -> str:
    """Return a traceback."""
    places = {
        "KeyError": ("rows", 23, "as_row", 'return Row(date, price, line["currency"])'),
        "FeedUnavailable": ("feeds", 41, "fetch", "raise FeedUnavailable(answer)"),
    }
    module, line, function, code = places[error]
    where = {"module": module, "line": line, "function": function, "code": code}
    return TRACEBACK.format(error=error, message=message, **where)


def usual_days(week: Week) -> None:
    """Send what is sent each day."""
    first = week.now - DAYS * DAY
    for hour in range(DAYS * 24):
        at = first + hour * HOUR
        # Whenever it is made, it is eleven on a Thursday there.
        of_day, weekday = (hour + 11) % 24, (3 + (hour + 11) // 24) % 7 < 5
        busy = weekday and 7 <= of_day < 19
        for user in range(1, len(NAMES) + 1):
            if busy and week.random.random() < 0.75:
                symbol = SYMBOLS[(user + hour) % len(SYMBOLS)]
                sent = at + week.random.randint(0, 55 * MINUTE)
                week.send("import", sent, user, args=[user, symbol])
            if of_day == 18:
                week.send("reconciliation", at + user * 20_000, user)
        for _ in range(week.random.randint(2, 6) if busy else 1):
            user = week.random.randint(1, len(NAMES))
            week.send("mail", at + week.random.randint(0, 59 * MINUTE), user)
        if busy and of_day % 4 == 0:
            week.send("user_verification", at + 11 * MINUTE, week.random.randint(1, len(NAMES)))
        if of_day == 3:
            nightly(week, at)


def nightly(week: Week, at: int) -> None:
    """Send the report of a night, which sends one for each user."""
    root = week.send("nightly_report", at)
    for user in range(1, len(NAMES) + 1):
        facts = {"parent_jid": root["jid"], "root_jid": root["jid"]}
        week.send("report", root["started_at"] + user * 110, user, **facts)


def feed_down(week: Week) -> None:
    """Let the supplier's feed be down for half an hour, three days ago; Ada runs again what died."""
    begin = week.now - 3 * DAY - 4 * HOUR
    for number in range(14):
        user = number % len(NAMES) + 1
        sent = begin + number * 2 * MINUTE
        symbol = SYMBOLS[number % 5]
        job = week.send("import", sent, user, args=[user, symbol])
        week.fail(job, FEED_DOWN, runs=4, is_dead=True)
        again = week.send(
            "import",
            begin + 50 * MINUTE + number * 40,
            user,
            args=job["args"],
            replay_of=job["jid"],
        )
        job["replayed_by"] = again["jid"]
        week.act(begin + 50 * MINUTE + number * 40, "ada", "requeue", job["jid"], "feed is back")


def out_of_memory(week: Week) -> None:
    """Let a worker be killed five days ago, whose runs are kept as interrupted."""
    at = week.now - 5 * DAY - 2 * HOUR
    for user in (3, 8):
        job = week.send("import", at, user, args=[user, "GOOG"], attempt=1)
        week.failures.append(
            {
                "jid": job["jid"],
                "token": f"{week.random.getrandbits(128):032x}",
                "attempt": 1,
                "outcome": "interrupted",
                "started_at": at + 200,
                "finished_at": at + 31_000,
                "duration": 30_800,
                "error_type": None,
                "error_message": None,
                "traceback": None,
                "worker": "worker-2:3977:4",
            }
        )
        late = {"started_at": at + 40_000, "finished_at": at + 43_000, "updated_at": at + 43_000}
        job |= late | {"duration": 3_000}


def this_hour(week: Week) -> None:
    """Let the deploy of half an hour ago break an import, and jobs be on their way."""
    begin = week.now - 25 * MINUTE
    for number in range(9):
        user = number % len(NAMES) + 1
        sent = begin + number * 150_000
        symbol = SYMBOLS[number % 2]
        job = week.send("import", sent, user, args=[user, symbol])
        week.fail(job, NO_CURRENCY, runs=4 if number < 6 else 2, is_dead=number < 6)
    for number in range(30):
        user = number % len(NAMES) + 1
        week.send("mail", week.now - (30 - number) * 110_000, user)
    unfinished = {"finished_at": None, "duration": None}
    not_begun = unfinished | {"started_at": None, "queue_time": None, "worker": None}
    not_begun |= {"process": None, "token": None}
    job = week.send("import", week.now - 70_000, 11, args=[11, "MSFT"])
    job |= unfinished | {"state": "started", "worker": "worker-1:4121:2", "process": "worker-1"}
    job |= {"progress": {"done": 412, "total": 1_000, "text": "rows"}}
    week.send("reconciliation", week.now - 40_000, 11, **not_begun).update(
        state="waiting", waiting_since=week.now - 40_000, eta=week.now + 4_000
    )
    week.send("report", week.now - 5 * MINUTE, 4, **not_begun).update(
        state="delayed", eta=week.now + 2 * HOUR
    )
    for user in (2, 5, 9):
        week.send("mail", week.now - 1_000 * user, user, **not_begun).update(state="enqueued")
    week.send("import", week.now - 2 * HOUR, 11, **not_begun).update(
        state="skipped", skip_reason="section finance:11 is held", finished_at=week.now - 2 * HOUR
    )


def write(joblog: JobLog, week: Week) -> None:
    """Write a week into an empty log."""
    now = week.now
    for host in HOSTS:
        joblog.Worker.create(
            process=host,
            host=host,
            pid=4121,
            threads=8,
            timeout=600_000,
            queues=["default", "imports", "mail"],
            boot_id="b6c1",
            started_at=now - 31 * MINUTE,
            heartbeat_at=now,
        )
    week.jobs.sort(key=lambda job: job["created_at"])
    for model, rows in (
        (joblog.Job, week.jobs),
        (joblog.Failure, week.failures),
        (joblog.Line, week.lines),
        (joblog.Action, week.actions),
    ):
        for begin in range(0, len(rows), 20):
            model.insert_many(rows[begin : begin + 20]).execute()
    holder = next(job for job in week.jobs if job["state"] == "started")
    joblog.Lock.create(
        kind="section",
        key="finance:11",
        slot=0,
        ttl=600_000,
        fence=31,
        last_fence=31,
        owner=holder["jid"],
        token=holder["token"],
        process="worker-1",
        acquired_at=now - 70_000,
        expires_at=now + 600_000,
    )
    for back, name in ((31 * MINUTE, "v1.9.0"), (2 * DAY, "v1.8.4"), (5 * DAY, "v1.8.3")):
        joblog.Deploy.create(at=now - back, name=name, who="ada")
    state = joblog.core.tables.alert
    known = {"first_seen_at": now - DAYS * DAY, "seen_at": now}
    dead = {"is_open": True, "since": now - 20 * MINUTE, "count": 6, "sent": "opened"}
    dead |= {"search": "state:dead type:import", "sent_at": now - 20 * MINUTE}
    dead |= {"summary": "6 jobs within 1 hour. import_prices: KeyError: 'currency'"}
    state.create(key="dead imports", name="dead imports", **dead, **known)
    nightly_one = {"name": "expected: nightly_report", "expects": "nightly_report"}
    state.create(key="expected: nightly_report", **nightly_one, **known)
    joblog.core.totals.catch_up(now)
    joblog.release()


def main(folder: str) -> None:
    """Write the page of such a week into a folder."""
    week = Week(int(time.time() * 1000))
    for add in (usual_days, feed_down, out_of_memory, this_hour):
        add(week)
    with tempfile.TemporaryDirectory() as place:
        joblog = JobLog(
            f"sqlite:///{place}/week.db",
            alerts=[
                Alert("dead imports", "state:dead type:import"),
                Expect("nightly_report", every=DAY, grace=HOUR),
            ],
        )
        joblog.create_tables()
        write(joblog, week)
        done = export(joblog, folder, environment="demo", title="shop")
        joblog.close()
    print(f"{done.files} files; open {done.index}")  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
