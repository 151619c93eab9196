"""``python -m example_app``: the whole story, from nothing to a log that is checked.

It starts a Redis if REDIS_URL names none, and worker processes; then it runs itself once
more, with ``--no-worker``, to send the jobs and watch them.  While another one runs in its
folder, it takes the next: ``.demo-2``.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import peewee
from rich.console import Console

from dramatiq_joblog import JobLogError

from .data import FOLDER
from .jobs import DATABASE_URL, REDIS_URL, JobType, broker, joblog
from .report import check, show, show_conflicts
from .servers import redis_server, wait_for_redis, workers
from .story import StoryError, jobs_of, send, watch

if TYPE_CHECKING:
    from collections.abc import Iterator

PYTHON = os.path.relpath(sys.executable) if ".venv" in sys.executable else "python"
LOG = 'os.environ["JOBLOG_DATABASE"]' if "JOBLOG_DATABASE" in os.environ else f'"{DATABASE_URL}"'
CLI = f"{Path(PYTHON).with_name('dramatiq-joblog')} --app example_app"
PAGE = "make web" if ".venv" in sys.executable else "python -m example_app.web"
ELSEWHERE = (
    f"""
  The files of this demo are in {FOLDER}; before anything else:
    [cyan]export EXAMPLE_FOLDER={FOLDER}[/]"""
    if "EXAMPLE_FOLDER" in os.environ
    else ""
)
NEXT = f"""
[bold]What to try next[/]{ELSEWHERE}
  Look at it on a page; run the demo again beside it, and watch:
    [cyan]{PAGE}[/]
  See what is dead, all of one such job, and how long jobs take:
    [cyan]{CLI} list state:dead[/]
    [cyan]{CLI} show JID[/]
    [cyan]{CLI} stats[/]
  Ask the log yourself:
    [cyan]{PYTHON} -c '
    import os; from dramatiq_joblog import JobLog
    for job in JobLog({LOG}).jobs.dead():
        print(job.job_type, job.user_id, job.error_message, sep=", ")'[/]
  The same story on servers of yours, with a worker in a terminal of its own:
    [cyan]export REDIS_URL=redis://localhost:6379/0[/]
    [cyan]export JOBLOG_DATABASE=postgresql://user@localhost/name[/]
    [cyan]{PYTHON} -m dramatiq example_app[/]
    [cyan]{PYTHON} -m example_app --no-worker[/]
"""


def main() -> int:
    """Run the story; return 0 if the log agrees with the jobs."""
    parser = argparse.ArgumentParser(prog="python -m example_app", description=__doc__)
    parser.add_argument(
        "--no-worker", action="store_true", help="send and watch only: you run the worker"
    )
    arguments = parser.parse_args()
    console = Console(highlight=False)
    try:
        return tell(console) if arguments.no_worker else run_all(console)
    except (StoryError, JobLogError, peewee.PeeweeException) as e:
        Console(stderr=True).print(f"[red]{e}[/]", soft_wrap=True, highlight=False)
        return 1
    except KeyboardInterrupt:
        return 130


def run_all(console: Console) -> int:
    """Start what is needed, run the story, and stop what was started."""
    with folder_alone():
        if "JOBLOG_DATABASE" not in os.environ:
            for suffix in ("", "-wal", "-shm"):
                (FOLDER / f"jobs.db{suffix}").unlink(missing_ok=True)
        joblog.create_tables()
        if "REDIS_URL" in os.environ:
            wait_for_redis(REDIS_URL, 0)
            console.print("Redis: the one that REDIS_URL names.")
            return run_with_workers(console)
        with redis_server() as (url, what):
            console.print(f"Redis: {what}, started for this demo alone.", soft_wrap=True)
            os.environ["REDIS_URL"] = url
            return run_with_workers(console)


@contextlib.contextmanager
def folder_alone() -> Iterator[None]:
    """Keep other demos out of the folder; while there is one in it, become one in the next."""
    FOLDER.mkdir(exist_ok=True)
    # Closed, and so free, when this process ends, however it does.
    with (FOLDER / "running").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            name, number = re.fullmatch(r"(.*?)(?:-(\d+))?", FOLDER.name).groups(default="1")  # type: ignore[union-attr]
            os.environ["EXAMPLE_FOLDER"] = str(FOLDER.with_name(f"{name}-{int(number) + 1}"))
            os.execv(sys.executable, [sys.executable, "-m", "example_app"])  # noqa: S606
        yield


def run_with_workers(console: Console) -> int:
    """Run the story in a process that knows the Redis, beside the workers."""
    log = FOLDER / "workers.log"
    with workers(log) as process:
        story = subprocess.Popen([sys.executable, "-m", "example_app", "--no-worker"])
        try:
            while (status := _wait(story)) is None:
                if process.poll() is not None:
                    story.terminate()
                    last = log.read_text(errors="replace").strip().splitlines()[-5:]
                    raise StoryError("\n".join([f"the workers ended early; see {log}:", *last]))
        finally:
            story.terminate()
            story.wait()
    if status == 0:
        dead = joblog.jobs.dead().of_type(JobType.RECONCILIATION).first()
        joblog.release()
        console.print(NEXT.replace("JID", dead.jid[:8] if dead else "JID"), soft_wrap=True)
    return status


def _wait(story: subprocess.Popen[bytes]) -> int | None:
    try:
        return story.wait(timeout=0.5)
    except subprocess.TimeoutExpired:
        return None


def tell(console: Console) -> int:
    """Send the jobs, watch them, and report."""
    wait_for_redis(REDIS_URL, 0)
    FOLDER.mkdir(exist_ok=True)
    joblog.create_tables()
    sent = send()
    console.print(f"{len(sent)} jobs of 12 users are sent; the log is {_place()}.\n")
    watch(console, sent)
    jobs = jobs_of(sent)
    show(console, jobs)
    held, agrees = show_conflicts(console, jobs), check(console, jobs)
    joblog.close()
    broker.close()
    return 0 if held and agrees else 1


def _place() -> str:
    name = DATABASE_URL.partition("://")[2].rpartition("@")[2]
    return f"in {name.lstrip('/')}" if DATABASE_URL.startswith("sqlite") else f"at {name}"


if __name__ == "__main__":
    sys.exit(main())
