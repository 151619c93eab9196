"""A real HTTP receiver of notices."""

from __future__ import annotations

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Receiver:
    """The requests received, and the status of responses."""

    def __init__(self):
        self.notices = []
        #: The status of responses.
        self.status = 200
        self.url = ""

    def of(self, name):
        """Return the events of the notices of one name."""
        return [notice["event"] for notice in list(self.notices) if notice.get("name") == name]


@contextlib.contextmanager
def receiving():
    """Run a receiver for the block."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            receiver.notices.append(json.loads(body))
            self.send_response(receiver.status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        receiver.url = f"http://127.0.0.1:{server.server_port}/"
        try:
            yield receiver
        finally:
            server.shutdown()
            thread.join()
