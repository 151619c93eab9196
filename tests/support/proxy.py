"""A TCP proxy that can refuse, close and stall connections: a network that fails on demand."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from urllib.parse import urlsplit


class Proxy:
    """Forwards connections to the server of *url*, unless a method stops it."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._target = (parts.hostname, parts.port)
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lost: set[socket.socket] = set()
        self._passing = threading.Event()
        self._passing.set()
        self._listener: socket.socket | None = None
        self.port = 0
        self._closed = False
        self.listen()

    def through(self, url: str) -> str:
        """Return a URL of the server that goes through the proxy."""
        _, port = self._target
        return url.replace(f":{port}", f":{self.port}", 1)

    def listen(self) -> None:
        """Accept connections, on the same port as before."""
        listener = socket.create_server(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def refuse(self) -> None:
        """Close all connections, and refuse new ones."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self.cut()

    def cut(self) -> None:
        """Close all connections; new ones are forwarded."""
        for pair in self._pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def lose(self) -> None:
        """Drop all connections without notice to either end; new ones are forwarded."""
        self._lost.update(client for client, _ in self._pairs)

    def hang(self) -> None:
        """Neither respond nor fail: accept data, and forward nothing."""
        self._passing.clear()

    def resume(self) -> None:
        """Forward again, including held back data."""
        self._passing.set()
        if self._listener is None:
            self.listen()

    def close(self) -> None:
        """Close the proxy."""
        self._closed = True
        self._passing.set()
        self.refuse()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._target)
            except OSError:
                client.close()
                continue
            self._pairs.append((client, server))
            if listener is not self._listener:
                # Refused while it connected: `refuse` has not seen this pair.
                client.close()
                server.close()
                continue
            threading.Thread(target=self._forward, args=(client, server), daemon=True).start()

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        other = {client: server, server: client}
        with client, server:
            while True:
                ready, _, _ = select.select([client, server], [], [])
                for end in ready:
                    try:
                        data = end.recv(65536)
                        self._passing.wait()
                        if client in self._lost:
                            threading.Event().wait()
                        if not data:
                            return
                        other[end].sendall(data)
                    except OSError:
                        return
