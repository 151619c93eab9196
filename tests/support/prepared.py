"""Starts commands from a process that has imported already what they import.

Half of what a worker process costs is importing, and nearly all of what the command line costs.
Each command is a process of its own, forked before it has a thread or a connection, and runs
``python -m MODULE``, or a script, as if it had been started so.  Run as a program this module is
the process that they come from; `Prepared` starts and asks it.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import io
import json
import locale
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

#: Bytes of a request, which names a command, its folder and its environment.
MOST = 1 << 20


#: What commands import, by the module that is run.
IMPORTS = {
    "dramatiq": ("brokers", "dramatiq.cli", "dramatiq.worker", "psycopg", "pymysql"),
    "dramatiq_joblog": ("dramatiq_joblog.cli", "psycopg", "pymysql", "rich.progress"),
}


def why_not(module: str) -> str | None:
    """Return why commands of a *module* cannot be started so, or None."""
    if sys.platform != "linux":
        return "that a command ends with its parent is arranged by Linux"
    if module == "dramatiq" and sys.version_info >= (3, 14):
        # The host's own workers come from another such process.
        return "workers are not forked"
    return None


class Command:
    """A command that was started, with what `subprocess.Popen` has of its methods."""

    def __init__(self, said: io.FileIO) -> None:
        self.pid = int(said.readline())
        self.returncode: int | None = None
        self._said = said

    def poll(self) -> int | None:
        """Return how it ended, or None if it runs."""
        return self._ended_within(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it ends."""
        code = self._ended_within(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        return code

    def terminate(self) -> None:
        """Ask it to end."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)

    def _ended_within(self, seconds: float | None) -> int | None:
        if self.returncode is None and select.select([self._said], [], [], seconds)[0]:
            # Nothing is said if what waits for it was killed.
            self.returncode = int(self._said.readline() or -signal.SIGKILL)
            self._said.close()
        return self.returncode


class Prepared:
    """The process that has imported all, which is started for the first command.

    Parameters:
      launch: Starts a program that ends with this one.
      module: What is run, if no script is named.
      environment: Its environment.
    """

    def __init__(self, launch, module: str, environment) -> None:
        self._launch = launch
        self._module = module
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket

    def start(self, arguments, *, folder, environment, files, script=None) -> Command:
        """Start ``python -m MODULE``, or a *script*, with *arguments*.

        *files* are its standard input, output and error.
        """
        if self._process is None:
            self._begin()
        reading, writing = os.pipe()
        try:
            command = [str(script or self._module), *map(str, arguments)]
            request = json.dumps([command, str(folder), dict(environment)])
            numbers = [*(file.fileno() for file in files), writing]
            socket.send_fds(self._socket, [request.encode()], numbers)
        finally:
            os.close(writing)
        return Command(io.FileIO(reading))

    def _begin(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = self._launch(
                [sys.executable, str(Path(__file__)), self._module, str(theirs.fileno())],
                on_parent_death=signal.SIGKILL,
                env=self._environment,
                pass_fds=[theirs.fileno()],
            )

    def stop(self) -> None:
        """End the process; commands that run end with it."""
        if self._process is not None:
            self._socket.close()
            self._process.wait(timeout=30)


def serve(requests: socket.socket) -> list[str] | None:
    """Fork for each request; return the command in the fork, and None at the end."""
    while True:
        request, files, _, _ = socket.recv_fds(requests, MOST, 4)
        if not request:
            return None
        if os.fork():
            for file in files:
                os.close(file)
            with contextlib.suppress(ChildProcessError):
                # Those that have ended.
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            continue
        requests.close()
        end_with_parent(signal.SIGKILL)
        *standard, saying = files
        if pid := os.fork():
            for file in standard:
                os.close(file)
            watch(pid, saying)
        os.close(saying)
        return become(standard, *json.loads(request))


def watch(pid: int, saying: int) -> None:
    """Say which process it is, and how it ends."""
    os.write(saying, b"%d\n" % pid)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(BrokenPipeError):
        os.write(saying, b"%d\n" % code)
    os._exit(0)


def become(files: list[int], command, folder, environment) -> list[str]:
    """Be as a process that was started anew."""
    os.setsid()
    end_with_parent(signal.SIGTERM)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    sys.path[0] = str(Path(command[0]).parent) if command[0].endswith(".py") else folder
    open_standard_files()
    return command


def open_standard_files() -> None:
    """Open them as Python does, to whom it matters whether one is a terminal."""
    encoding = locale.getpreferredencoding(False)
    sys.stdin = open(0, encoding=encoding, closefd=False)  # noqa: SIM115
    sys.stdout = open(  # noqa: SIM115
        1, "w", encoding=encoding, closefd=False, buffering=1 if os.isatty(1) else -1
    )
    sys.stderr = open(  # noqa: SIM115
        2, "w", encoding=encoding, errors="backslashreplace", closefd=False, buffering=1
    )


def end_with_parent(number: int) -> None:
    """Have the system send a signal when the parent ends."""
    ctypes.CDLL(None).prctl(1, int(number))


def import_all(module: str) -> None:
    """Import what commands import; this must have no effect, which a test of ours checks."""
    for name in IMPORTS[module]:
        imported = importlib.import_module(name)
        if name.startswith("dramatiq_joblog."):
            for found in pkgutil.iter_modules(imported.__path__, f"{name}."):
                importlib.import_module(found.name)
    # A name of the package is imported when it is asked for.
    package = importlib.import_module("dramatiq_joblog")
    for public in package.__all__:
        getattr(package, public)


if __name__ == "__main__":
    name, number = sys.argv[1:]
    import_all(name)
    gc.freeze()
    if (command := serve(socket.socket(fileno=int(number)))) is not None:
        sys.argv = command
        if command[0].endswith(".py"):
            runpy.run_path(command[0], run_name="__main__")
        else:
            runpy.run_module(command[0], run_name="__main__", alter_sys=True)
