"""What finishes regularly is learnt from the totals, and only offered."""

from __future__ import annotations

import itertools
import json
import random
import sys

import pytest
from click.testing import CliRunner

from dramatiq_joblog.alerts.learning import regular_in, regular_of, time_of_day
from dramatiq_joblog.cli.main import program
from dramatiq_joblog.statistics.cells import DAY, HOUR, MINUTE, QUARTER


def every(step, times, *, late=0):
    """Return the begins of spans in which something ended."""
    chance = random.Random(7)
    return [n * step + chance.randrange(late + 1) for n in range(times)]


@pytest.mark.parametrize(
    ("ends", "span", "found"),
    [
        (every(DAY, 10), HOUR, DAY),
        (every(DAY, 10, late=2 * HOUR), HOUR, DAY),
        (every(HOUR, 20), QUARTER, HOUR),
        (every(5 * MINUTE, 60), MINUTE, 5 * MINUTE),
        (every(7 * DAY, 12), DAY, 7 * DAY),
        # Too few, all the time, and by chance.
        (every(DAY, 3), HOUR, None),
        (every(MINUTE, 60), MINUTE, None),
        ([0, 5, 6, 19, 20, 44, 48, 90], MINUTE, None),
    ],
)
def test_what_is_regular(ends, span, found):
    """Ends are regular if all times between two are about the same, and not the shortest."""
    regular = regular_of("a", ends, span, 5)

    assert (regular and round(regular.every / span)) == (found and round(found / span))
    if regular is not None:
        gaps = [later - earlier for earlier, later in itertools.pairwise(ends)]
        assert regular.every + regular.grace >= max(gaps)


@pytest.mark.parametrize(
    ("hours", "usual"),
    [
        ([2] * 10, 2),
        # About the full hour, about midnight, and once late.
        ([1, 2, 2, 1, 1, 2], 1),
        ([23, 0, 23, 0], 23),
        ([2] * 9 + [7], 2),
        # Too few, and at any time.
        ([2, 2], None),
        ([2, 5, 9, 14, 20, 23], None),
    ],
)
def test_a_time_of_the_day(hours, usual):
    """Ends have a time of the day if most of them are within the same two spans."""
    found = time_of_day([n * DAY + hour * HOUR for n, hour in enumerate(hours)], HOUR)

    assert found == (None if usual is None else usual * HOUR)


def test_types_that_finish_regularly(joblog, job_factory, ask):
    """They are offered as rules, with how often that was seen; others are not."""
    now = joblog.core.locks.now()
    for days in range(1, 12):
        at = now - days * DAY
        job_factory(job_type="nightly", finished_at=at, created_at=at)
    chance = random.Random(7)
    for _ in range(20):
        at = now - chance.randrange(10 * DAY)
        job_factory(job_type="mail", finished_at=at, created_at=at)
    assert "no job type finishes" in ask("expect", "--learn", code=1).stderr
    joblog.core.totals.catch_up(now)

    [regular] = regular_in(joblog.core)
    assert (regular.job_type, regular.times) == ("nightly", 11)
    assert abs(regular.every - DAY) < HOUR
    told = ask("expect", "--learn").stdout
    assert "Expect('nightly', every=86_400_000, grace=" in told
    assert "11 times" in told
    assert regular.usually is not None
    usually = (now % DAY - regular.usually) % DAY
    assert 0 <= usually < 2 * QUARTER
    assert "usually after" in told
    [row] = json.loads(ask("expect", "--learn", "--json").stdout)
    assert row["job_type"] == "nightly"
    assert "give --learn" in ask("expect", code=2).stderr


APP = """
from dramatiq_joblog import Alert, JobLog
def say(notice):
    print("NOTICE", notice.event, notice.name)
def fail(notice):
    raise ValueError("no")
joblog = JobLog({url!r}, alerts=[Alert("dead", "state:dead"), Alert("lost", "state:lost", to=fail)],
                notify=say, alerts_every=1000)
bare = JobLog({url!r})
"""


def test_the_state_of_alerts(joblog, job_factory, ask, tmp_path, monkeypatch, database_url):
    """The command shows what is open and what was sent, and tries who is notified."""
    assert "no worker has checked" in ask("alerts", code=1).stderr
    (tmp_path / "alerting_app.py").write_text(APP.format(url=database_url))
    monkeypatch.syspath_prepend(tmp_path)
    job_factory(state="dead")
    job_factory(state="lost", finished_at=None)

    def of_app(name, *arguments, code=0):
        done = CliRunner().invoke(program, ["--app", f"alerting_app:{name}", *arguments])
        assert code == done.exit_code, done.output
        return done

    told = of_app("joblog", "alerts", "--test", code=1).stdout
    assert "NOTICE test notify=" in told
    assert "lost: ValueError: no" in told
    log = sys.modules["alerting_app"].joblog
    log.core.alerting.round()
    rows = {row["name"]: row for row in json.loads(ask("alerts", "--json").stdout)}
    assert (rows["dead"]["is_open"], rows["dead"]["sent"]) == (True, "opened")
    assert (rows["lost"]["sent"], rows["lost"]["error"]) == (None, "ValueError: no")
    shown = ask("alerts").stdout
    assert "open\tdead" in shown
    assert "opened was not sent: ValueError: no" in shown
    assert "by --app" in ask("alerts", "--test", code=2).stderr
    assert "has no alerts" in of_app("bare", "alerts", "--watch", code=2).stderr
    assert ask("alerts", "--prometheus").stdout.startswith("# Rules for Prometheus")
    assert json.loads(ask("alerts", "--grafana").stdout)["title"]
    for each in (log, sys.modules["alerting_app"].bare):
        each.close()
    del sys.modules["alerting_app"]
