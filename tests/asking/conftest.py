"""What tests of waiting have in common."""

from __future__ import annotations

import threading

import pytest


@pytest.fixture
def elsewhere():
    """Return a function that calls another on a thread, and returns what joins it."""
    threads = []

    def call(function, *args, **kwargs):
        result = []

        def run():
            try:
                result.append(function(*args, **kwargs))
            except Exception as e:  # noqa: BLE001 - it is the result
                result.append(e)

        thread = threading.Thread(target=run)
        thread.start()
        threads.append(thread)

        def join():
            thread.join(15)
            assert not thread.is_alive()
            return result[0]

        return join

    yield call
    for thread in threads:
        thread.join(15)
