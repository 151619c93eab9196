"""``victim_worker`` on a host whose clock is wrong by SKEWED_BY milliseconds."""

from __future__ import annotations

import os
import time

import dramatiq.common

AHEAD = int(os.environ["SKEWED_BY"])
true_time, true_time_ns = time.time, time.time_ns
time.time = lambda: true_time() + AHEAD / 1000
time.time_ns = lambda: true_time_ns() + AHEAD * 1_000_000
dramatiq.common.time = time.time

from victim_worker import broker  # noqa: E402, F401 - once the clock is wrong
