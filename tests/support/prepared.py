"""Starts commands from a process that has already imported their modules.

Importing takes half of the start of a worker process, and nearly all of the command line's.  Each
command is a separate process, forked without threads and connections, that runs ``python`` with a
module, a script or code as if started directly.  Run as a program, this module is the parent of
these processes; `Prepared` starts and controls it.
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
import tempfile
import time
from pathlib import Path

#: The maximum size of a request in bytes: a command, its folder and its environment.
MOST = 1 << 20


#: The imports, by what is run: workers, the command line, or any program.
IMPORTS = {
    "dramatiq": (
        *("brokers", "dramatiq.cli", "dramatiq.worker", "dramatiq_joblog", "psycopg", "pymysql"),
    ),
    "dramatiq_joblog": (
        *("dramatiq_joblog", "dramatiq_joblog.cli", "psycopg", "pymysql", "rich.progress"),
    ),
    # The dependencies.  Not the package: it is a plugin, so pytest rewrites its assertions.
    "python": (
        *("cryptography.fernet", "dramatiq.brokers.redis", "dramatiq.cli", "jinja2"),
        *("playhouse.migrate", "playhouse.sqlite_ext", "prometheus_client", "psycopg", "pymysql"),
        *("rich.progress", "rich.table"),
    ),
}
#: Imports of what may not be installed: of Django what needs no settings.
OPTIONAL_IMPORTS = {
    "python": (
        *("django.contrib.messages.api", "django.contrib.staticfiles.finders"),
        *("django.core.management.commands.migrate", "django.db.backends.postgresql.base"),
        *("django.db.backends.sqlite3.base", "django.test", "django.views.generic"),
    ),
}


def why_not(kind: str) -> str | None:
    """Return why commands of a *kind* of `IMPORTS` cannot be started this way, or None."""
    if sys.platform != "linux":
        return "that a command ends with its parent is arranged by Linux"
    if kind == "dramatiq" and sys.version_info >= (3, 14):
        # Dramatiq's workers come from another fork server.
        return "workers are not forked"
    return None


class Command:
    """A started command, with the methods of `subprocess.Popen` that tests use."""

    def __init__(self, said: io.FileIO) -> None:
        self.pid = int(said.readline())
        self.returncode: int | None = None
        self._said = said

    def poll(self) -> int | None:
        """Return its exit code, or None if it is running."""
        return self._ended_within(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it ends."""
        code = self._ended_within(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        return code

    def terminate(self) -> None:
        """Send it SIGTERM."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)

    def _ended_within(self, seconds: float | None) -> int | None:
        if self.returncode is None and select.select([self._said], [], [], seconds)[0]:
            # There is no exit code if the process that waits for it was killed.
            self.returncode = int(self._said.readline() or -signal.SIGKILL)
            self._said.close()
        return self.returncode


class Prepared:
    """The process with all imports.

    It ends with the thread that makes this, so that is the main thread of the tests.

    Parameters:
      launch: Starts a program that ends with this one.
      kind: Which of `IMPORTS` it has.
      environment: Its environment.
    """

    def __init__(self, launch, kind: str, environment) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process: subprocess.Popen[bytes] = launch(
                [sys.executable, str(Path(__file__)), kind, str(theirs.fileno())],
                on_parent_death=signal.SIGKILL,
                env=environment,
                pass_fds=[theirs.fileno()],
            )

    def start(self, arguments, *, folder, environment, files) -> Command:
        """Start ``python`` with *arguments*: a script, ``-m MODULE`` or ``-c CODE`` and its own.

        *files* are its standard input, output and error.
        """
        reading, writing = os.pipe()
        try:
            request = json.dumps([[*map(str, arguments)], str(folder), dict(environment)])
            numbers = [*(file.fileno() for file in files), writing]
            socket.send_fds(self._socket, [request.encode()], numbers)
        finally:
            os.close(writing)
        return Command(io.FileIO(reading))

    def run(
        self, arguments, *, folder, environment, input="", timeout=60
    ) -> subprocess.CompletedProcess[str]:
        """Start a command, wait for its end, and return its output."""
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
            files[0].write(input.encode())
            files[0].seek(0)
            process = self.start(arguments, folder=folder, environment=environment, files=files)
            code = process.wait(timeout=timeout)
            for file in files:
                file.seek(0)
            _, written, errors = (file.read().decode() for file in files)
        return subprocess.CompletedProcess(arguments, code, written, errors)

    def stop(self) -> None:
        """End the process, and all running commands with it."""
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
                # Reap ended processes.
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
    """Report the process ID, and the exit code."""
    os.write(saying, b"%d\n" % pid)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(BrokenPipeError):
        os.write(saying, b"%d\n" % code)
    os._exit(0)


def become(files: list[int], command, folder, environment) -> list[str]:
    """Set up this process like a newly started one."""
    os.setsid()
    end_with_parent(signal.SIGTERM)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    sys.dont_write_bytecode = bool(environment.get("PYTHONDONTWRITEBYTECODE"))
    sys.path[0] = folder if command[0].startswith("-") else str(Path(command[0]).parent.absolute())
    added = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[1:1] = [path for path in added if path and path not in sys.path]
    open_standard_files()
    return command


def open_standard_files() -> None:
    """Open them like Python, which checks whether each is a terminal."""
    encoding = locale.getpreferredencoding(False)
    sys.stdin = open(0, encoding=encoding, closefd=False)  # noqa: SIM115
    sys.stdout = open(  # noqa: SIM115
        1, "w", encoding=encoding, closefd=False, buffering=1 if os.isatty(1) else -1
    )
    sys.stderr = open(  # noqa: SIM115
        2, "w", encoding=encoding, errors="backslashreplace", closefd=False, buffering=1
    )


def end_with_parent(number: int) -> None:
    """Request a signal for when the parent process ends."""
    ctypes.CDLL(None).prctl(1, int(number))


def import_all(kind: str) -> None:
    """Import the modules of a kind of commands; a test checks that this has no effect."""
    for name in IMPORTS[kind]:
        imported = importlib.import_module(name)
        if name == "dramatiq_joblog":
            # The package imports its names lazily.
            for public in imported.__all__:
                getattr(imported, public)
        elif name.startswith("dramatiq_joblog."):
            for found in pkgutil.iter_modules(imported.__path__, f"{name}."):
                importlib.import_module(found.name)
    for name in OPTIONAL_IMPORTS.get(kind, ()):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def run(option: str, *rest: str) -> None:
    """Run what the arguments of an interpreter say."""
    if option == "-c":
        code, *arguments = rest
        sys.argv = ["-c", *arguments]
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    elif option == "-m":
        sys.argv = [*rest]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [option, *rest]
        runpy.run_path(option, run_name="__main__")


if __name__ == "__main__":
    name, number = sys.argv[1:]
    import_all(name)
    gc.freeze()
    if (command := serve(socket.socket(fileno=int(number)))) is not None:
        run(*command)
