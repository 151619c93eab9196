"""Separate hosts on one machine, each with its own network, name and processes.

They are in a network namespace that is isolated from the machine, and ends with its processes.  For
root on Linux only.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import servers

#: The address of the servers; those of hosts follow.
HUB = "10.77.0.1"
TOOLS = ("hostname", "ip", "unshare")
CLONE_NEWNET = 0x40000000
ROOT = Path(__file__).parents[2]


def why_not() -> str | None:
    """Return why hosts cannot be created here, or None."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "hosts are made of Linux's namespaces, by root"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"hosts need {', '.join(missing)} (on Debian: apt install iproute2)"
    made = subprocess.run(
        ["unshare", "--net", "--uts", "--pid", "--fork", "--mount-proc", "true"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"this system makes no namespaces: {made.stderr.strip()}" if made.returncode else None


def in_own_network(body):
    """Call *body* on a thread with its own network, with a bridge for hosts.

    Its child processes and threads are in that network too.
    """
    errors = []

    def run() -> None:
        try:
            _leave_the_network()
            ip("link set lo up")
            ip("link add hub type bridge")
            ip(f"addr add {HUB}/24 dev hub")
            ip("link set hub up")
            body()
        except BaseException as e:  # noqa: BLE001
            # Including pytest's, such as a failure.
            errors.append(e)

    thread = threading.Thread(target=run, name="own network")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


def _leave_the_network() -> None:
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "no network of our own")


def ip(command: str) -> None:
    """Run ``ip``."""
    subprocess.run(["ip", *command.split()], check=True, capture_output=True)


def on_host(name: str, command: list[str]) -> list[str]:
    """Return a command that runs another one on a host with its own name and processes.

    It has the network of the calling thread.
    """
    namespaces = ["--uts", "--pid", "--fork", "--mount-proc", "--kill-child"]
    named = ["sh", "-c", f'hostname {name} && exec "$@"', "sh"]
    return [shutil.which("unshare") or "unshare", *namespaces, *named, *command]


class Host:
    """A host that runs a worker process of *module* until it is killed.

    Parameters:
      number: Its number, from 1, which is part of its name.
      module: The module of its worker.
      folder: Its disk.
      env: Additional environment variables.
      processes: The number of worker processes.
      threads: The number of threads of each.
    """

    def __init__(
        self,
        number: int,
        module: str,
        folder: Path,
        env: dict[str, str],
        *,
        processes: int = 1,
        threads: int = 1,
    ) -> None:
        self.name = f"host{number}"
        self._link = f"to-{self.name}"
        disk = folder / self.name
        disk.mkdir()
        self.log = disk / "log"
        worker = f"{sys.executable} -m dramatiq {module} -p {processes} -t {threads}"
        wired = disk / "wired"
        script = (
            f"hostname {self.name} && until [ -e {wired} ]; do sleep 0.05; done "
            f"&& ip link set lo up && ip addr add 10.77.0.{10 + number}/24 dev eth0 "
            f"&& ip link set eth0 up && exec {worker}"
        )
        namespaces = ["--net", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child"]
        with self.log.open("wb") as log:
            self.process = servers.launch(
                [shutil.which("unshare"), *namespaces, "sh", "-c", script],
                on_parent_death=signal.SIGKILL,
                cwd=ROOT,
                env=os.environ
                | {"PYTHONPATH": f"{ROOT}/tests/support:{ROOT}", "XDG_STATE_HOME": str(disk)}
                | env,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._wire()
        wired.touch()

    def _wire(self) -> None:
        # It creates its network first.
        mine = Path("/proc/thread-self/ns/net").readlink()
        while Path(f"/proc/{self.process.pid}/ns/net").readlink() == mine:
            time.sleep(0.01)
        ip(f"link add {self._link} type veth peer name eth0 netns {self.process.pid}")
        ip(f"link set {self._link} master hub up")

    @property
    def output(self) -> str:
        """The output of its worker so far."""
        return self.log.read_text(errors="replace")

    def cut_off(self) -> None:
        """Block all its network traffic."""
        ip(f"link set {self._link} down")

    def reconnect(self) -> None:
        """Allow its network traffic again."""
        ip(f"link set {self._link} up")

    def kill(self) -> None:
        """Simulate a power failure: it no longer responds."""
        self.cut_off()
        self.stop()

    def stop(self) -> None:
        """End all its processes at once."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
