"""How the writer's thread waits for items, and for what is due later."""

from __future__ import annotations

import math
import threading
import time

import pytest

from dramatiq_joblog.recording.events import Enqueued
from dramatiq_joblog.recording.inbox import Inbox, Receipt

#: Seconds; longer than any test takes.
LONG = 3_600


class Later:
    """What is due later, unless it is dropped."""

    def __init__(self, seconds, *, is_dropped=False):
        self.due = time.monotonic() + seconds
        self.is_dropped = is_dropped

    def events(self):
        return [self]


@pytest.fixture
def inbox():
    """Return an inbox without a thread."""
    return Inbox()


@pytest.fixture
def taking(inbox):
    """Return a function that takes on another thread: what it has taken, and whether it is done."""
    threads = []

    def take(due=None):
        receipts, done = [], threading.Event()
        thread = threading.Thread(target=lambda: (inbox.take(due, receipts), done.set()))
        thread.start()
        threads.append(thread)
        return receipts, done

    yield take
    inbox.add(Receipt(None))
    for thread in threads:
        thread.join()


def rides():
    """Return an item that is written with the next one."""
    return Receipt(Enqueued({"jid": "rides"}), awaited=False, rides=True)


def test_what_is_due_later_does_not_end_the_wait(inbox, taking, eventually):
    """The thread plans it, and sleeps on: what rides is not written in a transaction of its own."""
    receipts, done = taking()
    riding, later, awaited = rides(), Later(LONG), Receipt(Enqueued({"jid": "awaited"}))
    inbox.add(riding)
    inbox.add_late(later)
    eventually(lambda: inbox._asleep_until == later.due)
    assert not done.is_set()

    inbox.add(awaited)
    assert done.wait(30)
    assert [riding, awaited] == receipts


def test_what_is_no_longer_needed_does_not_end_the_wait(inbox, taking, eventually):
    """The thread sleeps until the first of those that are still needed."""
    needed = Later(LONG)
    for later in (Later(-1, is_dropped=True), Later(0.01, is_dropped=True), needed):
        inbox.add_late(later)
    _, done = taking()
    inbox.add(rides())
    eventually(lambda: inbox._asleep_until == needed.due)
    assert not done.is_set()
    assert [] == inbox.take_late()


def test_what_is_due_ends_the_wait(inbox, taking):
    """Also if it was submitted while the thread slept without an end."""
    receipts, done = taking()
    riding, later = rides(), Later(0.05)
    inbox.add(riding)
    inbox.add_late(later)
    assert done.wait(30)
    assert [riding] == receipts
    assert time.monotonic() >= later.due
    assert [later] == inbox.take_late()


def test_a_chore_ends_the_wait(inbox, taking):
    """It may be due before anything that was submitted."""
    inbox.add_late(Later(LONG))
    receipts, done = taking(time.monotonic() + 0.01)
    assert done.wait(30)
    assert [] == receipts == inbox.take_late()


def test_who_takes_what_is_due_later(inbox, taking, eventually):
    """Who submits it must know whether there is a thread."""
    later = Later(LONG)
    assert not inbox.add_late(later)
    _, done = taking()
    eventually(lambda: inbox._asleep_until != math.inf)
    assert inbox.add_late(Later(LONG))
    inbox.add(Receipt(None))
    assert done.wait(30)
    inbox.leave()
    assert not inbox.add_late(Later(LONG))
