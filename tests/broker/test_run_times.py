"""How long runs lately took, and whether that is worth a larger fetch."""

from __future__ import annotations

import types

import pytest

from dramatiq_joblog.broker import run_times
from dramatiq_joblog.broker.run_times import CoreUse, RunTimes


@pytest.fixture
def clock(monkeypatch):
    """Return a function that lets so many seconds pass, with so many of processor time."""
    now = {"monotonic": 100.0, "process_time": 10.0}
    clocks = {name: lambda name=name: now[name] for name in now}
    monkeypatch.setattr(run_times, "time", types.SimpleNamespace(**clocks))

    def let_pass(seconds, used):
        now["monotonic"] += seconds
        now["process_time"] += used

    return let_pass


@pytest.fixture
def times(clock):
    """Return run times of a process that has computed all the time."""
    times = RunTimes()
    clock(1.0, 1.0)
    return times


def noted(times, *seconds):
    for each in seconds:
        times.note("work", each)
    return times


def test_what_never_ran_is_not_known():
    """An actor without a run has no expected time."""
    assert RunTimes().expected("work") is None


def test_a_longer_run_counts_at_once():
    """The expected time is that of the longest run lately, and falls slowly."""
    times = noted(RunTimes(), 0.001, 0.1)
    assert times.expected("work") == 0.1
    assert 0.08 < noted(times, 0.001).expected("work") < 0.1
    assert noted(times, *[0.001] * 100).expected("work") == pytest.approx(0.001, rel=0.01)


def test_runs_of_less_than_a_fetch_are_brief(clock):
    """Whatever the processor does."""
    times = noted(RunTimes(), 0.0001, 0.0009)
    clock(1.0, 0.0)
    assert times.are_brief({"work"})
    assert not noted(times, 0.002).are_brief({"work"})


def test_runs_that_only_wait_for_the_interpreter_are_brief(times):
    """On a busy core, some of them are seen to take little time."""
    assert noted(times, 0.0005, 0.006, 0.004, 0.006).are_brief({"work"})


def test_runs_that_sleep_are_not_brief(times):
    """None of them takes little time, however busy the core."""
    assert not noted(times, 0.005, 0.006, 0.005).are_brief({"work"})


def test_long_runs_are_not_brief(times):
    """A run now and then that takes long, though others do not."""
    assert not noted(times, 0.0005, 0.03, 0.0005).are_brief({"work"})


def test_runs_that_no_longer_take_little_time(times):
    """What once took little time, and now sleeps, is soon seen."""
    noted(times, 0.0005, 0.006)
    assert times.are_brief({"work"})
    assert not noted(times, *[0.005] * 20).are_brief({"work"})


def test_all_actors_of_a_fetch_must_be_brief(times):
    """One that sleeps is enough for a fetch that comes earlier."""
    noted(times, 0.0005)
    times.note("sleeps", 0.005)
    assert times.are_brief({"work"})
    assert not times.are_brief({"work", "sleeps"})


@pytest.mark.parametrize(
    ("used", "is_busy"), [(0.5, False), (0.89, False), (0.95, True), (1.2, True), (1.9, False)]
)
def test_a_busy_core(clock, used, is_busy):
    """Less leaves time to fetch; more is computed outside the interpreter."""
    core = CoreUse()
    clock(1.0, used)
    assert core.is_busy() is is_busy


def test_a_core_stays_busy_through_small_gaps(clock):
    """The whole batches that follow cost a part of it, which must not end them."""
    core = CoreUse()
    clock(1.0, 0.8)
    assert not core.is_busy()
    clock(1.0, 1.0)
    assert core.is_busy()
    clock(1.0, 0.8)
    assert core.is_busy()
    clock(1.0, 0.7)
    assert not core.is_busy()


def test_a_moment_says_nothing(clock):
    """The share is that of a while."""
    core = CoreUse()
    clock(0.05, 0.05)
    assert not core.is_busy()
    clock(0.06, 0.06)
    assert core.is_busy()
