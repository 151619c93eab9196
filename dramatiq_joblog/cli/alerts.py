"""``alerts`` and ``expect``: alerts, notices, and jobs that run regularly."""

from __future__ import annotations

import time
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from dramatiq_joblog.alerts.learning import regular_in
from dramatiq_joblog.reading.display import last_notice, not_sent, shell_word
from dramatiq_joblog.states import State

from .app import NOTHING, Refusal, Session, command
from .style import QUIET, TITLE, ago, colour, line, number, shape
from .table import Column

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from dramatiq_joblog import AlertState
    from dramatiq_joblog.alerts.learning import Regular

    from .table import Screen

#: Cells before a sentence: a shape and a space.
_INDENT = 2


@command(
    "alerts",
    "Show alerts: what is open, what was sent, what failed.",
    examples=[
        ("alerts", "open alerts, what was sent, what could not be sent"),
        ("--app shop.jobs:joblog alerts --test", "send a test notice"),
        (
            "alerts --prometheus > joblog.yml",
            "alerting rules for Prometheus, for the dashboard's metrics",
        ),
        ("--app shop.jobs:joblog alerts --watch", "check the rules, in addition to the workers"),
    ],
)
@click.option("--grafana", is_flag=True, help="Print a dashboard for Grafana, and exit.")
@click.option("--prometheus", is_flag=True, help="Print rules for Prometheus, and exit.")
@click.option("--test", is_flag=True, help="Send a test notice to everyone who is notified.")
@click.option("--watch", is_flag=True, help="Check the rules and send notices, until Ctrl-C.")
def alerts(session: Session, *, grafana: bool, prometheus: bool, test: bool, watch: bool) -> None:
    """Show each alert: whether it is open, what was sent last, and what could not be sent.

    The workers check the rules. --watch checks them as well, in case all workers are gone; one
    process at a time sends. --test and --watch need the rules of the application: --app.
    """
    if grafana or prometheus:
        name = "grafana.json" if grafana else "prometheus.yml"
        session.screen.raw(monitoring(name))
        return
    if test or watch:
        _need_rules(session)
    if test:
        _test(session)
    elif watch:
        _watch(session)
    else:
        _show(session)


@command(
    "expect",
    "Show which jobs run regularly, for Expect().",
    examples=[
        ("expect --learn", "suggest rules for the job types that finish regularly"),
        ("expect --learn --json", "for programs"),
    ],
)
@click.option("--learn", is_flag=True, help="Find job types that finish regularly, in the totals.")
def expect(session: Session, *, learn: bool) -> None:
    """Suggest Expect rules for jobs that finish regularly, for JobLog(alerts=[...]).

    They are learnt from the totals, which outlive the jobs. This creates no alerts: copy the
    rules that you want into your code.
    """
    if not learn:
        raise Refusal("give --learn; alerts shows the rules in use")
    found = regular_in(session.joblog.core)
    if session.json:
        session.screen.json([each.as_dict() for each in found])
    else:
        now = session.joblog.now()
        for each in found:
            session.screen.fit(_rule_of(each, now))
    if not found:
        raise Refusal("no job type finishes regularly", NOTHING)


def monitoring(name: str) -> str:
    """Return the text of a configuration file for a monitoring system."""
    return (files("dramatiq_joblog") / "alerts" / "monitoring" / name).read_text("utf-8")


def _rule_of(each: Regular, now: datetime) -> Text:
    rule = f"Expect({line(each.job_type)!r}, every={each.every:_}, grace={each.grace:_}),"
    said = f"{each.times} times, the last {ago(each.last, now)}"
    if each.usually is not None:
        hours, minutes = divmod(each.usually // 60_000, 60)
        said = f"usually after {hours:02}:{minutes:02} UTC, {said}"
    return Text.assemble(rule, (f"  # {said}", QUIET))


def _need_rules(session: Session) -> None:
    if session.app is None:
        raise Refusal("the rules are in your code: name its log by --app module:joblog")
    if not session.joblog.core.alerting.rules:
        raise Refusal(f"{session.app} has no alerts: give it JobLog(alerts=[...], notify=...)")


def _test(session: Session) -> None:
    results = session.joblog.core.alerting.test()
    if session.json:
        session.screen.json(results)
    else:
        for name, error in results.items():
            state = State.FINISHED if error is None else State.DEAD
            session.screen.fit(
                Text.assemble(shape(state), f" {line(name)}: {line(error or 'sent')}")
            )
    if not results:
        raise Refusal("nobody is notified: give the log notify=, or a rule to=")
    if any(results.values()):
        raise click.exceptions.Exit(NOTHING)


def _watch(session: Session) -> None:
    alerting = session.joblog.core.alerting
    session.screen.write(f"Checking {len(alerting.rules)} rules. Ctrl-C ends it.")
    while True:
        alerting.round()
        time.sleep(alerting.every / 1000)


def _show(session: Session) -> None:
    now = session.joblog.now()
    found = list(session.joblog.alerts)
    if session.screen.live and found and not session.json:
        _read(session.screen, found, now)
    else:
        session.show(found, _columns(now), nothing="no worker has checked any alert yet")


def _read(screen: Screen, found: Sequence[AlertState], now: datetime) -> None:
    """Show each alert that is open, or whose notice was not sent, in full; the others in a list."""
    count = sum(state.is_open for state in found)
    if count:
        all_ = f"{number(len(found))} alert{'s' * (len(found) != 1)}"
        screen.write((f"{number(count)} of {all_} {'is' if count == 1 else 'are'} open", TITLE))
    else:
        screen.write(shape(State.FINISHED), (" No alert is open", TITLE))
    for state in found:
        if state.is_open or state.error:
            _in_full(screen, state, now)
    others = [state for state in found if not (state.is_open or state.error)]
    if others:
        screen.title("Not open")
        mark, name, *_, last, _ = _columns(now)
        screen.table([mark, name, last], others)


def _in_full(screen: Screen, state: AlertState, now: datetime) -> None:
    look = State.DEAD if state.is_open else State.FINISHED
    since, last = _since(state, now), _last(state, now)
    facts = [
        f"since {since}" if since else "not open",
        f"last notice: {last}" if last else "no notice yet",
    ]
    screen.write()
    name = (line(state.name), f"{TITLE} {colour(look)}")
    seen = (f"  {'; '.join(facts)}", QUIET)
    screen.hanging(Text.assemble(shape(look), " ", name, seen), _INDENT)
    if state.is_open and state.summary:
        screen.paragraph(Text(line(state.summary)), _INDENT)
    if state.error:
        screen.paragraph(Text(_problem(state), colour(State.DEAD)), _INDENT)
    if state.is_open and state.search:
        search = shell_word(state.search, spaces=True)
        screen.paragraph(Text.assemble(("dramatiq-joblog list ", QUIET), search), _INDENT)


def _columns(now: datetime) -> list[Column[AlertState]]:
    return [
        Column("", lambda s: shape(State.DEAD if s.is_open else State.FINISHED), _state_of),
        Column("Alert", lambda s: s.name, keep=10, least=16),
        Column("Since", lambda s: _since(s, now), lambda s: s.as_dict()["since"], keep=8),
        Column("Count", _count, lambda s: s.count, keep=5, right=True),
        Column(
            "Last notice",
            lambda s: _last(s, now),
            _notice,
            keep=7,
            least=12,
        ),
        Column("Problem", _problem, keep=4, least=10),
    ]


def _state_of(state: Any) -> str:
    return "open" if state.is_open else "well"


def _since(state: Any, now: datetime) -> str:
    return ago(state.since, now) if state.is_open and state.since is not None else ""


def _count(state: Any) -> str:
    return number(state.count) if state.is_open else ""


def _last(state: Any, now: datetime) -> str:
    return f"{_event_of(state)} {ago(state.sent_at, now)}" if state.sent_at is not None else ""


def _notice(state: Any) -> str:
    return f"{_event_of(state)} {state.as_dict()['sent_at']}" if state.sent_at is not None else ""


def _event_of(state: Any) -> str:
    return line(last_notice(state))


def _problem(state: Any) -> str:
    return line(not_sent(state))
