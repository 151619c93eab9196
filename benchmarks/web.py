"""What the pages cost on a large log: the median of each, on SQLite and on PostgreSQL.

Each page is asked for over HTTP from a real uvicorn in a process of its own: once with nothing
kept, and then many times, as by someone who watches it; charts and counts may be some seconds old.

    python benchmarks/web.py [--jobs 1000000] [--times 15] [--keep FOLDER] [--only sqlite]
                             [--uncounted]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests" / "support"), str(HERE)]

import filling  # noqa: E402
import servers  # noqa: E402

from dramatiq_joblog import JobLog  # noqa: E402

SERVE = """
import sys, uvicorn
from dramatiq_joblog import JobLog
from dramatiq_joblog.web import dashboard
page = dashboard(JobLog(sys.argv[1]), authorize=lambda request: "all")
uvicorn.run(page, port=int(sys.argv[2]), log_level="critical", ws="none")
"""


def pages(address: str) -> dict[str, str]:
    """Return the pages by name: what people look at."""

    def first(words: str, field: str = "jid") -> str:
        with urllib.request.urlopen(f"{address}/jobs.json?q={words}") as answer:
            return json.load(answer)["jobs"][0][field]

    with urllib.request.urlopen(f"{address}/jobs.json") as answer:
        older = json.load(answer)["older"]
    return {
        "Overview, 1 h": "/?range=1h",
        "Overview, 24 h": "/?range=24h",
        "Overview, 90 d": "/?range=90d",
        "Types": "/types",
        "a type": "/types/type_03",
        "a type, 7 d": "/types/type_03?range=7d",
        "a user": "/users/4711",
        "a user, 90 d": "/users/4711?range=90d",
        "Queues": "/queues",
        "a queue": "/queues/" + first("state:finished", "queue"),
        "What changed": "/compare",
        "What changed, 7 d": "/compare?range=7d",
        "Jobs": "/jobs",
        "Jobs, the slowest": "/jobs?sort=duration",
        "Jobs, slower than": "/jobs?q=duration:>10s",
        "Jobs, an argument": "/jobs?q=args.number:7",
        "Jobs, ended within": "/jobs?q=ended:2h..1h",
        "Jobs, the second page": f"/jobs?before={older}",
        "Jobs, dead": "/jobs?q=state:dead",
        "Jobs, finished": "/jobs?q=state:finished",
        "Jobs of a type": "/jobs?q=type:type_03",
        "Jobs of a user": "/jobs?q=user:4711",
        "Jobs, dead of an actor": "/jobs?q=state:dead+actor:send_mail",
        "Jobs, an error of a day": "/jobs?q=error:FeedError+since:1d",
        "a job": "/jobs/" + first("state:finished"),
        "a dead job": "/jobs/" + first("state:dead"),
        "Dead": "/dead",
        "Dead, 7 d": "/dead?window=7d",
        "Locks": "/locks",
        "Workers": "/workers",
        "Actions": "/actions",
        "Alerts": "/alerts",
        "completion": "/complete?word=error:",
        "/metrics": "/metrics",
        "/health": "/health",
    }


def median(url: str, times: int) -> tuple[float, float]:
    """Return the median of some answers and what the first took, in milliseconds."""
    took = []
    for _ in range(times + 1):
        began = time.perf_counter()
        with urllib.request.urlopen(url) as answer:
            html = answer.read().decode()
        took.append((time.perf_counter() - began) * 1000)
        if "The database took longer" in html:
            took[-1] = float("inf")
    return statistics.median(took[1:]), took[0]


def measure(url: str, times: int) -> dict[str, tuple[float, float]]:
    """Serve the page of a log, and measure it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    process = servers.launch(
        [sys.executable, "-c", SERVE, url, str(port)],
        on_parent_death=signal.SIGKILL,
        stdout=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                urllib.request.urlopen(f"{address}/health").close()
                break
            except urllib.error.HTTPError:
                raise
            except OSError:
                time.sleep(0.1)
        return {name: median(address + path, times) for name, path in pages(address).items()}
    finally:
        process.kill()
        process.wait()


def fill(url: str, jobs: int, *, counted: bool = True) -> None:
    """Fill the log if it is empty, and bring its totals up to date, or take them away."""
    joblog = JobLog(url)
    joblog.create_tables()
    if not joblog.jobs.exists():
        filling.fill(joblog, jobs)
    if counted:
        # As a worker does every minute.
        joblog.core.totals.catch_up(int(time.time() * 1000))
    else:
        for model in (joblog.core.tables.total, joblog.core.tables.mark):
            model.delete().execute()
    joblog.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--times", type=int, default=15)
    parser.add_argument("--keep", type=Path, help="a folder for the SQLite file, to use again")
    parser.add_argument("--only", choices=("sqlite", "postgres"))
    parser.add_argument("--uncounted", action="store_true", help="without totals")
    arguments = parser.parse_args()
    os.environ.setdefault("XDG_STATE_HOME", tempfile.mkdtemp())
    results = {}
    if arguments.only != "postgres":
        with tempfile.TemporaryDirectory() as folder:
            url = f"sqlite:///{(arguments.keep or Path(folder)) / 'web.db'}"
            fill(url, arguments.jobs, counted=not arguments.uncounted)
            results["SQLite"] = measure(url, arguments.times)
    if arguments.only != "sqlite":
        server = servers.start_postgres()
        try:
            fill(server.url, arguments.jobs, counted=not arguments.uncounted)
            results["PostgreSQL"] = measure(server.url, arguments.times)
        finally:
            server.stop()
    print(f"{arguments.jobs:,} jobs, {arguments.times} times, ms: median (the first)\n")
    print("| page | " + " | ".join(results) + " |")
    print("|---|" + "---|" * len(results))
    for name in next(iter(results.values())):
        cells = [f"{of[name][0]:.0f} ({of[name][1]:.0f})" for of in results.values()]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
