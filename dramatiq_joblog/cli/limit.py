"""``limit``: how many may hold a key at once, or start by it, set while jobs run."""

from __future__ import annotations

import click

from dramatiq_joblog.locking.limits import said_of
from dramatiq_joblog.locking.locks import fold_key
from dramatiq_joblog.reading.search import instant_to_come

from .app import Refusal, Session, command
from .confirm import myself
from .style import line

#: What takes a limit back.
_CODE = "code"


@command(
    "limit",
    "Change the limit of a key while jobs run.",
    examples=[
        ("limit erp 0 --until 2h", "pause a key for two hours"),
        ("limit erp 3", "three at once, or that many starts of a rate"),
        ("limit erp code", "as the code says again"),
    ],
)
@click.argument("key")
@click.argument("number")
@click.option(
    "--until",
    metavar="TIME",
    help="How long it holds: 30m, 2h, 1d, or until a date like 2026-11-24T12:00.",
)
def limit(session: Session, *, key: str, number: str, until: str | None) -> None:
    """Set how many may hold a key at once, or start by it, in place of the code's limit.

    NUMBER is 0 to pause the key, or "code" to take back what was set.  Those that are
    inside go on.  Who did it is kept: see actions.
    """
    joblog = session.joblog
    if number != _CODE and not number.isdecimal():
        raise Refusal(f"{number!r} is no limit: use a whole number, or {_CODE!r} for the code's")
    wanted = None if number == _CODE else int(number)
    ends = None if until is None else instant_to_come(until, joblog.now())
    joblog.set_limit(key, wanted, until=ends, who=myself())
    stored = fold_key(key)
    now = next((each for each in joblog.limits if each.key == stored), None)
    if session.json:
        session.screen.json(None if now is None else now.as_dict())
    else:
        session.screen.write(f"The limit of {line(key)} is {said_of(now)}.")
