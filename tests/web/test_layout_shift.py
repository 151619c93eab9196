"""Live pages while jobs come and go: the layout is stable."""

from __future__ import annotations

import threading

import dramatiq
import pytest
from pages import chromium, opened, served

from dramatiq_joblog import JobLog

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]

PAGES = (
    *("/", "/jobs", "/jobs?q=state:dead", "/types", "/types/import", "/users/5", "/compare"),
    *("/dead", "/queues", "/queues/default", "/locks", "/workers", "/actions"),
)
#: How often a page asks for what is new, and the milliseconds between.
ASKED, EVERY = 4, 250
#: What may move while a page asks.
MOST = 0.01
#: Adds up what moved without a hand having moved it, and counts the questions.
WATCH = """() => {
  window.moved = { sum: 0, what: [], asked: 0 };
  const { fetch } = window;
  window.fetch = (...request) => fetch(...request).finally(() => { moved.asked += 1; });
  new PerformanceObserver((list) => {
    for (const entry of list.getEntries()) {
      if (entry.hadRecentInput) continue;
      moved.sum += entry.value;
      for (const { node, previousRect: a, currentRect: b } of entry.sources)
        moved.what.push([entry.value.toFixed(4), (node?.outerHTML || node?.data || "").slice(0, 90),
          a.x, a.y, a.width, a.height, b.x, b.y, b.width, b.height].join(" "));
    }
  }).observe({ type: "layout-shift" });
}"""


@pytest.fixture(scope="module")
def browser():
    """Return a headless Chromium."""
    with chromium() as found:
        yield found


@pytest.fixture
def log(sqlite_database):
    """Return a log on SQLite."""
    log = JobLog(sqlite_database)
    yield log
    log.close()


@pytest.fixture
def busy(log, make_broker, worker):
    """Run jobs, some of which fail, are slow, or wait for each other, until the end of the test.

    As many jobs are sent as a page asks questions.
    """
    broker = make_broker(joblog=log)
    done = threading.Event()

    @dramatiq.actor(job_type="import", job_user="user", max_retries=1, min_backoff=200)
    def load(user):
        if user % 3 == 0:
            raise ConnectionError(f"feed of {user} is closed")
        done.wait(user % 4 / 10)

    @dramatiq.actor(job_type="mail", job_user="user", exclusive="mail")
    def mail(user):
        done.wait(0.05)

    def send(first, count):
        for user in range(first, first + count):
            load.send(user % 12)
            mail.send(user % 7)

    def keep_on():
        number = 0
        while not done.wait(2 * EVERY / 1000):
            number += 1
            send(number, 1)

    send(0, 20)
    with worker(broker):
        broker.join("default", timeout=20_000, fail_fast=False)
        log.core.writer.flush(timeout=10)
        thread = threading.Thread(target=keep_on, daemon=True)
        thread.start()
        yield
        done.set()
        thread.join()


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_moves_by_itself(log, browser, busy, width):
    """While jobs come in, no page moves by more than a hundredth."""
    kind = {"viewport": {"width": width, "height": 900}}
    if width < 500:
        kind |= {"has_touch": True, "is_mobile": True}
    moved = {}
    with served(opened(log, every=EVERY)) as address:
        # One after the other: thirteen live pages at once keep two cores from showing any in time.
        page = browser.new_context(**kind).new_page()
        for path in PAGES:
            page.goto(address + path)
            page.evaluate(WATCH)
            before = page.inner_text("main")
            page.wait_for_function("number => moved.asked >= number", arg=ASKED)
            moved[path] = page.evaluate("moved")
            if path == "/jobs":
                # The page was live: otherwise it would be no wonder.
                assert before != page.inner_text("main")
        page.context.close()
    faults = [
        f"{path}: {found['sum']:.3f}: {line}"
        for path, found in moved.items()
        if found["sum"] > MOST
        for line in found["what"][:8]
    ]
    assert not faults, "\n".join(faults)
