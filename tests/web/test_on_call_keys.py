"""On call with the keyboard alone: the number of keys from the overview to an answer."""

from __future__ import annotations

import dramatiq
import pytest
from pages import chromium, opened, served
from playwright.sync_api import expect

from dramatiq_joblog import JobLog

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def browser():
    """Return a headless Chromium."""
    with chromium() as found:
        yield found


@pytest.fixture
def address(sqlite_database, make_broker, worker):
    """Serve a log in which user 7's import is dead, among the jobs of others."""
    log = JobLog(sqlite_database)
    broker = make_broker(joblog=log)

    @dramatiq.actor(job_type="import", job_user="user", max_retries=0)
    def load(user):
        if user == 7:
            raise ConnectionError("the feed of shop 4711 is closed")

    for user in (1, 5, 7, 9, 70):
        load.send(user)
    with worker(broker):
        broker.join("default", timeout=20_000, fail_fast=False)
    log.core.writer.flush(timeout=10)
    with served(opened(log, every=60_000)) as at:
        yield at
    log.close()


@pytest.fixture
def press(browser, address):
    """Return the overview, a function that presses keys, and the keys pressed."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(address)
    pressed = []

    def keys(*names):
        for name in names:
            page.keyboard.press(name)
            pressed.append(name)

    yield page, keys, pressed
    context.close()


def test_the_import_of_a_user_did_not_come(press, address):
    """The reason for a missing import is on one page, at most twelve keys away."""
    page, keys, pressed = press

    keys("/")
    page.wait_for_url("**/jobs?focus=1")
    expect(page.locator(".find [role=combobox]")).to_be_focused()
    keys(*"user:7", "Enter")
    page.wait_for_url("**/jobs?q=user%3A7*")

    (row,) = page.locator("table.jobs tbody tr").all()
    expect(row).to_contain_text("ConnectionError the feed of shop 4711 is closed")
    expect(row).to_contain_text("import")
    keys("j", "Enter")
    page.wait_for_url("**/jobs/*-*")
    expect(page.locator("h1")).to_contain_text("import")
    expect(page.locator("#runs")).to_contain_text("Traceback")
    assert len(pressed) <= 12


def test_what_is_asked_most(press, address):
    """Changes, slow types and stuck jobs need two keys, and no search."""
    page, keys, pressed = press
    for letter, path, heading in (
        ("c", "/compare", "What changed"),
        ("y", "/types", "Types"),
        ("q", "/queues", "Queues"),
        ("d", "/dead", "Dead"),
    ):
        keys("g", letter)
        page.wait_for_url(f"{address}{path}")
        expect(page.locator("h1")).to_contain_text(heading)
        expect(page.locator("#needs")).to_be_visible()
    assert len(pressed) == 8
