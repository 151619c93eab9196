"""Servers that all pytest workers of a run share, each started when a test first asks for it.

Starting RabbitMQ takes longer than the tests that use it.  The main pytest process therefore owns
the servers, and the workers of pytest-xdist get their addresses from it.
"""

from __future__ import annotations

import functools
import secrets
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing.connection import Client, Listener

import servers

#: The maximum number of pytest workers with a virtual host of the RabbitMQ started here.
VIRTUAL_HOSTS = 16
STARTS = {
    "MariaDB": servers.start_mysql,
    "PostgreSQL": servers.start_postgres,
    "RabbitMQ": functools.partial(servers.start_rabbitmq, virtual_hosts=VIRTUAL_HOSTS),
}


@dataclass(frozen=True)
class Shared:
    """A running server, which no test may stop."""

    #: The name for display, with its version.
    name: str
    #: Where it came from.
    origin: str
    url: str
    #: The process ID; None if it was running before.
    pid: int | None


class Pool:
    """The servers of a run, in the process that starts and stops them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started: dict[str, Future[servers.Server]] = {}
        # A server ends with the thread that started it, so the threads must stay.
        self._threads = ThreadPoolExecutor(len(STARTS), "server")
        self._listener: Listener | None = None

    def get(self, kind: str) -> Shared:
        """Return the server of a *kind*, started at the first request.

        Raises:
          ServerMissingError: If there is none.
        """
        with self._lock:
            future = self._started.get(kind)
            if future is None:
                future = self._started[kind] = self._threads.submit(STARTS[kind])
        server = future.result()
        pid = server.process.pid if server.process else None
        return Shared(server.name, server.origin, server.url, pid)

    def listen(self) -> tuple[str, str]:
        """Return the address and the key for a `Remote` in another process."""
        if self._listener is None:
            self._key = secrets.token_hex()
            self._listener = Listener(family="AF_UNIX", authkey=self._key.encode())
            threading.Thread(target=self._accept, daemon=True).start()
        return self._listener.address, self._key

    def _accept(self) -> None:
        while True:
            try:
                connection = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection) -> None:
        with connection:
            try:
                answer = self.get(connection.recv())
            except (servers.ServerMissingError, RuntimeError) as e:
                answer = e
            connection.send(answer)

    def stop(self) -> None:
        """Stop the servers that were started."""
        if self._listener is not None:
            self._listener.close()
        self._threads.shutdown()
        for future in self._started.values():
            if future.exception() is None:
                future.result().stop()


class Remote:
    """The servers of a run, in a worker of pytest-xdist."""

    def __init__(self, address: str, key: str) -> None:
        self._address = address
        self._key = key

    def get(self, kind: str) -> Shared:
        """As `Pool.get`."""
        with Client(self._address, authkey=self._key.encode()) as connection:
            connection.send(kind)
            answer = connection.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def stop(self) -> None:
        """Do nothing: the main process stops the servers."""


def rabbitmq_of(server: Shared, worker: int) -> Shared:
    """Return the RabbitMQ of a pytest *worker*: its own virtual host.

    Raises:
      ServerMissingError: If it has none, for example on a named server, which has only one.
    """
    if not worker:
        return server
    if server.pid is None or worker >= VIRTUAL_HOSTS:
        raise servers.ServerMissingError(
            f"the RabbitMQ of {server.origin} does not serve pytest worker {worker}"
        )
    return replace(server, url=server.url.replace("%2F", servers.virtual_host(worker)))
