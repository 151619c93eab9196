"""The dead jobs by error and actor, and recent actions."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dramatiq_joblog.admin import audit
from dramatiq_joblog.payload.values import host_now
from dramatiq_joblog.schema.models import instant_of, to_millis
from dramatiq_joblog.schema.query import word

from . import charts
from .common import PER_PAGE, deed
from .periods import RANGES, chosen
from .verdict import flags_of

if TYPE_CHECKING:
    from starlette.responses import Response

    from .context import Visit

#: The windows of the counts, in milliseconds.
WINDOWS = {name: RANGES[name] for name in ("1h", "3h", "24h", "3d", "7d")}
#: The maximum number of groups shown; each adds to the response time.
MOST_GROUPS = 50


def dead(visit: Visit) -> Response:
    """Respond with the dead jobs by error and actor, counted in several windows."""
    window = chosen(visit.query, "window", WINDOWS)
    log = visit.joblog
    groups = visit.rows(
        "the groups",
        lambda: visit.site.keep("groups", lambda: log.dead_groups(tuple(WINDOWS.values()))),
    )
    step = WINDOWS[window] // charts.SPARKS
    series: dict[Any, list[int]] = visit.part(
        "when they died",
        lambda: visit.site.keep(
            f"dead {window}", lambda: audit.dead_series(log.Job, WINDOWS[window], step, host_now())
        ),
        {},
    )
    messages: dict[Any, list[Any]] = visit.part(
        "their messages",
        lambda: visit.site.keep(
            f"messages {window}", lambda: log.dead_messages(WINDOWS[window]), times=3
        ),
        {},
    )
    if not visit.access.sees_arguments:
        groups, messages = [replace(group, message=None) for group in groups], {}
    if visit.wants_json:
        rows_ = [_plain_group(group, series) for group in groups]
        return visit.json({"window": window, "step": step, "groups": rows_})
    groups = [group for group in groups if any(group.counts.values())]
    total = sum(group.counts[WINDOWS[window]] for group in groups)
    rows = [_group(visit, group, window, series) for group in groups[:MOST_GROUPS]]
    young, flags = _is_young(visit), flags_of(visit.figures.problems())
    for row, group in zip(rows, groups, strict=False):
        row["flag"] = flags.get(f"{group.error_type} in {group.actor}", "") or (
            "" if young else _flag(group)
        )
        row["patterns"] = _patterns(visit, messages.get((group.error_type, group.actor), []), row)
    deeds = visit.rows("the actions", lambda: log.actions.limit(5))
    facts = {
        "window": window,
        "windows": list(WINDOWS),
        "groups": rows,
        "total": total,
        "more": len(groups) - len(rows),
        "rows": [deed(row) for row in deeds],
    }
    return visit.page("dead.html", "Dead", facts, live=True, section="dead")


#: The maximum number of messages shown for an error, and milliseconds of a day.
_MOST_PATTERNS, _DAY = 3, 86_400_000


def _is_young(visit: Visit) -> bool:
    """Return whether the log is too young to know what is new."""
    job = visit.joblog.Job
    first = visit.rows(
        None, lambda: job.select(job.created_at).order_by(job.created_at).limit(1).tuples()
    )
    return not first or to_millis(visit.now) - to_millis(first[0][0]) < 2 * _DAY


def _flag(group: Any) -> str:
    """Return a flag if an error is new within a day, or three times as frequent as before."""
    today, week = group.counts[WINDOWS["24h"]], group.counts[WINDOWS["7d"]]
    if today and today == week:
        return "new"
    return "rising" if today >= 3 and today >= 3 * (week - today) / 6 else ""


def _patterns(visit: Visit, messages: list[Any], row: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the message patterns of a group; none if all messages are the same."""
    messages = [each for each in messages if each.pattern.strip("* ") or len(messages) > 1]
    if len(messages) < 2 and not any("*" in each.pattern for each in messages):
        return []
    return [
        {
            "text": each.pattern.replace("*", "\u2026") or "no message",
            "count": each.count,
            "href": visit.link("jobs", q=f"{row['q']} {quoted(each.pattern)}"),
        }
        for each in messages[:_MOST_PATTERNS]
    ]


def quoted(pattern: str) -> str:
    """Quote a text for a search; a quote in it, which cannot be escaped, becomes a wildcard."""
    plain = pattern.replace('"', "*").strip("* ")
    return f'"{plain}"' if plain else ""


def _plain_group(group: Any, series: dict[Any, list[int]]) -> dict[str, Any]:
    return {
        "error_type": group.error_type,
        "actor": group.actor,
        "counts": {name: group.counts[span] for name, span in WINDOWS.items()},
        "jid": group.jid,
        "last_at": group.last_at.isoformat(),
        "message": group.message,
        "series": series.get((group.error_type, group.actor), []),
    }


def _group(visit: Visit, group: Any, window: str, series: dict[Any, list[int]]) -> dict[str, Any]:
    words = f"state:dead {word('actor', group.actor)}"
    # Jobs that are dead without an error are a group too.
    words += f" {word('error', group.error_type)}" if group.error_type else " -error:*"
    cells = [
        {
            "window": name,
            "count": group.counts[span],
            "href": visit.link("jobs", q=f"{words} ended:{name}"),
            "picked": name == window,
        }
        for name, span in WINDOWS.items()
    ]
    return {
        "id": charts.name_of(f"{group.error_type} {group.actor}"),
        "error": group.error_type or "no error",
        "actor": group.actor,
        "message": group.message or "",
        "last": group.last_at,
        "jid": group.jid,
        "cells": cells,
        "picked": group.counts[WINDOWS[window]],
        "spark": _spark(visit, series.get((group.error_type, group.actor), []), window),
        "q": f"{words} ended:{window}",
    }


def _spark(visit: Visit, numbers: list[int], window: str) -> Any:
    step = WINDOWS[window] // charts.SPARKS
    now = to_millis(visit.now)
    return charts.spark(numbers, instant_of(now - now % -step), step)


def actions(visit: Visit) -> Response:
    """Respond with the audit log, newest first."""
    log = visit.joblog
    before = visit.query.get("before", "")
    query = log.actions
    if before.isdigit() and len(before) < 19:
        query = query.where(log.Action.id < int(before))
    found = visit.rows("the actions", lambda: query.limit(PER_PAGE + 1))
    found, more = found[:PER_PAGE], len(found) > PER_PAGE
    older = visit.link.here(before=found[-1].id) if more else None
    if visit.wants_json:
        rows_ = [visit.visible.as_dict(row) for row in found]
        return visit.json({"actions": rows_, "older": found[-1].id if more else None})
    facts = {"rows": [deed(row) for row in found], "older": older}
    return visit.page("actions.html", "Actions", facts, live=not before, section="actions")
