"""Dashboards for the tests, and the browser."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import threading

import pytest
import uvicorn

from dramatiq_joblog.web import dashboard

#: The programs that are a Chromium.  The others make a window with all its controls for each
#: context, which takes a third of the CPU time of these tests.
PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


def opened(joblog, **settings):
    """Return a dashboard that gives everyone access, as "local".

    Its timeouts are long, so that pages are complete even on a loaded machine.
    """
    settings = {"timeout": 30_000} | settings
    return dashboard(joblog, authorize=lambda request: ("all", "local"), **settings)


@contextlib.contextmanager
def chromium(*settings):
    """Run a headless Chromium with *settings*; without one, skip, or fail if CI is set."""
    from playwright.sync_api import expect, sync_playwright

    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, PROGRAMS)), None)
    if path is None:
        text = "no Chromium: apt install chromium-headless-shell, or name one by CHROMIUM"
        without = os.environ.get("JOBLOG_TEST_WITHOUT", "").split()
        if os.environ.get("CI") and "Chromium" not in without:
            pytest.fail(f"CI is set and {text}", pytrace=False)
        pytest.skip(text)
    with sync_playwright() as playwright:
        # A loaded machine is slow, and no test is about speed.
        expect.set_options(timeout=30_000)
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", *settings])
        yield browser
        browser.close()


@contextlib.contextmanager
def served(app):
    """Serve an application on a free port, and return its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        settings = uvicorn.Config(app, log_level="critical", ws="none", lifespan="off")
        server = uvicorn.Server(settings)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        yield f"http://localhost:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(timeout=10)
