"""``limit``: the limit of a key, set while jobs run."""

from __future__ import annotations

import click

from dramatiq_joblog.locking.limits import said_of
from dramatiq_joblog.locking.locks import fold_key
from dramatiq_joblog.payload.values import MAX_INT
from dramatiq_joblog.reading.search import instant_to_come

from .app import MINUS, Refusal, Session, command
from .confirm import myself
from .style import line

#: The word that removes a set limit.
_CODE = "code"


@command(
    "limit",
    "Change the limit of a key while jobs run.",
    examples=[
        ("limit erp 0 --until 2h", "pause a key for two hours"),
        ("limit erp 3", "three at once, or three starts per period of a rate"),
        ("limit erp code", "back to the code's limit"),
    ],
)
@click.argument("key")
@click.argument("number")
@click.option(
    "--until",
    metavar="TIME",
    help="How long it applies: 30m, 2h, 1d, or until a date such as 2026-11-24T12:00.",
)
def limit(session: Session, *, key: str, number: str, until: str | None) -> None:
    """Set how many jobs may hold a key at once, or start by a rate, overriding the code's limit.

    NUMBER 0 pauses the key; "code" restores the code's limit. Running jobs continue. The audit
    log records who did it: see actions.
    """
    joblog = session.joblog
    wanted = _read(number)
    ends = None if until is None else instant_to_come(until, joblog.now())
    joblog.set_limit(key, wanted, until=ends, who=myself())
    stored = fold_key(key)
    now = next((each for each in joblog.limits if each.key == stored), None)
    if session.json:
        session.screen.json(None if now is None else now.as_dict())
    else:
        session.screen.write(f"The limit of {line(key)} is {said_of(now)}.")


def _read(number: str) -> int | None:
    """Return the limit that was typed; None for the limit of the code."""
    if number == _CODE:
        return None
    # Python refuses to read numbers with very many digits.
    limit = int(number) if number.isdecimal() and len(number) <= len(str(MAX_INT)) else -1
    if not 0 <= limit <= MAX_INT:
        typed = number.replace(MINUS, "-")
        raise Refusal(
            f"{typed[:40]!r} is not a limit: use a whole number from 0 to {MAX_INT}, where 0 "
            f"pauses the key, or {_CODE!r} for the code's limit"
        )
    return limit
