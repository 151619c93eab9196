"""One job: its timeline, runs, log lines, family, and actions on it."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from dramatiq.logging import get_logger
from markupsafe import Markup

from dramatiq_joblog.broker.arguments import signature_of
from dramatiq_joblog.errors import JobNotFound, SearchError
from dramatiq_joblog.reading.story import sent_at
from dramatiq_joblog.schema.query import cursor_of, word
from dramatiq_joblog.states import FINAL, State

from .common import waiters
from .family import MOST, Family
from .formats import ago, duration, plain_duration, text
from .history import history
from .named import arguments_of
from .presenters import JobRow, places, share_of
from .timeline_svg import Run, draw, runs_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from starlette.responses import Response

    from .context import Visit

#: The maximum number of lines and actions shown.
MOST_LINES, MOST_ACTIONS = 500, 50


def job(visit: Visit) -> Response:
    """Respond with one job."""
    found = visit.visible.row(_find(visit, visit.request.path_params["jid"]))
    log = visit.joblog
    failures = visit.rows("the failed runs", lambda: found.failures)
    lines = []
    if visit.access.sees_arguments:
        lines = visit.rows("the log lines", lambda: found.lines.limit(MOST_LINES))
    family = visit.rows("the family", lambda: _family(visit, found)) or [found]
    relatives = Family(found, family, visit.now)
    deeds = visit.rows(
        "the actions", lambda: log.actions.where(log.Action.jid == found.jid).limit(50)
    )
    if visit.wants_json:
        return visit.json(
            {
                "job": visit.visible.as_dict(found),
                "failures": [visit.visible.as_dict(row) for row in failures],
                "lines": [visit.visible.as_dict(row) for row in lines],
                "family": [visit.visible.as_dict(row) for row in family if row.jid != found.jid],
                "actions": [visit.visible.as_dict(row) for row in deeds],
            }
        )
    runs = runs_of(found, failures, visit.now)
    place = None
    if found.state == State.WAITING and found.section:
        place = places({found.section: waiters(visit, found.section)}).get(found.jid)
    row = JobRow(found, visit.now, place, seen=visit.access.sees_arguments)
    facts = {
        "row": row,
        "then": visit.link.local(visit.query["then"]) if visit.query.get("then") else None,
        "rest": visit.query.get("rest", ""),
        "name_words": word("type" if found.job_type else "actor", row.name),
        "dismissed": found.dismissed_at is not None,
        "job_links": _job_links(visit, found),
        "facts": _facts(visit, found, row),
        "timeline": draw(found, failures, visit.now),
        "runs": _runs(runs, lines, visit.now),
        **_sent_and_noted(visit, found),
        **_walk(visit, found),
        "button": _button(found, relatives.dead()),
        "family": relatives.drawn(),
        "dead_below": _dead_below(relatives, found),
        "history": history(visit, found, failures, family, deeds),
    }
    return visit.page("job.html", row.name, facts, live=True, section="jobs")


def _find(visit: Visit, jid: str) -> Any:
    """Return the job of a path, which may end with ``.json``."""
    try:
        found = visit.joblog.get(jid)
    except JobNotFound:
        found = None
    name = visit.read_suffix(jid, is_name=found is not None)
    return visit.joblog.get(name) if found is None else found


def _family(visit: Visit, found: Any) -> list[Any]:
    """Return a job and its relatives, oldest first."""
    log = visit.joblog
    row = log.Job
    root = found.root_jid or found.jid
    # Not one condition with OR, for which a database may scan all jobs in order.
    related = list(log.jobs.where(row.jid == root))
    related += list(log.jobs.where(row.root_jid == root).order_by(row.id).limit(MOST))
    replays = [jid for jid in (found.replay_of, found.replayed_by) if jid]
    if replays:
        related += list(log.jobs.where(row.jid.in_(replays)))
    known = {relative.jid: relative for relative in related}
    known.setdefault(found.jid, found)
    return list(known.values())


def _job_links(visit: Visit, found: Any) -> list[tuple[str, str]]:
    if visit.site.job_links is None:
        return []
    try:
        links = [(str(text), str(href)) for text, href in visit.site.job_links(found)]
    except Exception:  # noqa: BLE001
        # The user's callable failed; the page must still work.
        get_logger(__name__).exception("job_links failed on job %s", found.jid)
        visit.banners.append("The application's own links are missing: job_links failed.")
        return []
    # Excludes javascript: links.
    return [(text, href) for text, href in links if href.startswith(("http:", "https:", "/"))]


def _facts(visit: Visit, found: Any, row: JobRow) -> list[tuple[str, Any]]:
    attempts = f"{row.attempt} of {row.attempts}" if row.attempts else str(row.attempt)
    actor = Markup('<a class="link mono" href="{}">{}</a>').format(
        visit.link("jobs", q=word("actor", row.actor)), row.actor
    )
    facts: list[tuple[str, Any]] = [
        ("Actor", actor),
        (
            "Queue",
            Markup('<a class="link" href="{}">{}</a>').format(
                visit.link.to_queue(row.queue), text(row.queue)
            ),
        ),
        ("Attempt", attempts),
        ("Queue time", duration(row.queue_time)),
        ("Running for" if row.running_since else "Duration, last run", duration(row.duration)),
    ]
    if found.section:
        where = Markup('<a class="link mono" href="{}">{}</a>')
        facts.append(("Section", where.format(visit.link("locks"), found.section)))
    if row.worker:
        facts.append(("Worker", Markup('<span class="mono">{}</span>').format(row.worker)))
    ended = row.final and row.when is not None
    facts.append(
        ("Ended" if ended else "Sent", ago(row.when if ended else sent_at(found), visit.now))
    )
    return facts


def _runs(runs: Sequence[Run], lines: Sequence[Any], now: datetime) -> list[dict[str, Any]]:
    shapes = {"retried": "retrying", "interrupted": "lost"}
    failed = [run for run in runs if run.failure is not None]
    first_failed = failed[0].number if failed else None
    shown = []
    for run in runs:
        failure = run.failure
        text = ""
        if failure is not None and failure.error_type:
            text = ": ".join(filter(None, (failure.error_type, failure.error_message)))
        end = run.end or (now if run.outcome == "started" else None)
        traceback = failure.traceback if failure is not None else None
        shown.append(
            {
                "id": run.number,
                "title": f"Run {run.number}",
                "outcome": run.outcome,
                "shape": shapes.get(run.outcome, run.outcome),
                "text": text or _silence(run),
                "worker": run.worker,
                "duration": None if end is None else (end - run.begin) / timedelta(milliseconds=1),
                "open": run.number in {first_failed, len(runs)},
                "lines": [_line(row, run) for row in lines if _belongs(row, run, runs)],
                "traceback": traceback,
                "same_as": _same_as(run, runs),
                "error": "" if traceback else text,
                "note": _note(run, is_last=run is runs[-1]),
            }
        )
    return shown


def _same_as(run: Run, runs: Sequence[Run]) -> int | None:
    """Return the number of an earlier run with the same traceback, or None."""
    if run.failure is None or not run.failure.traceback:
        return None
    for other in runs:
        if other.number >= run.number:
            return None
        if other.failure is not None and other.failure.traceback == run.failure.traceback:
            return other.number
    return None


def _silence(run: Run) -> str:
    if run.outcome == "interrupted":
        return f"The worker {run.worker} disappeared, or lost its connection"
    return ""


def _note(run: Run, *, is_last: bool) -> str:
    if not _silence(run):
        return ""
    return f"{_silence(run)}." + ("" if is_last else " The broker delivered the message again.")


def _belongs(line: Any, run: Run, runs: Sequence[Run]) -> bool:
    """Return whether a line was written in a run: by its token, else by its time."""
    token = run.failure.token if run.failure is not None else None
    if token is not None:
        return bool(line.token == token)
    known = {other.failure.token for other in runs if other.failure is not None}
    return run is runs[-1] and line.token not in known


def _line(line: Any, run: Run) -> dict[str, Any]:
    passed = (line.time - run.begin) / timedelta(milliseconds=1)
    level = str(line.level).lower()
    return {
        "at": f"+{plain_duration(max(0, passed))}",
        "level": level,
        "loud": level in {"warning", "error", "critical"},
        "text": line.text,
    }


def _progress(found: Any) -> dict[str, Any] | None:
    progress = found.progress
    if not isinstance(progress, dict) or not progress:
        return None
    done, total, text = (progress.get(name) for name in ("done", "total", "text"))
    counted = "" if done is None else (f"{done:,}" if isinstance(done, int) else str(done))
    if total is not None:
        counted += f" of {total:,}" if isinstance(total, int) else f" of {total}"
    words = " \u00b7 ".join(filter(None, (counted.replace(",", "\u202f"), str(text or ""))))
    return {"share": share_of(progress), "text": words}


def _sent_and_noted(visit: Visit, found: Any) -> dict[str, Any]:
    if not visit.access.sees_arguments:
        hidden = {"pairs": [], "redacted": 0, "text": "You may not see the arguments of jobs."}
        return {"progress": None, "arguments": hidden, "meta": []}
    return {
        "progress": _progress(found),
        "arguments": arguments_of(found, signature_of(found.actor, visit.site.broker)),
        "meta": sorted((found.meta or {}).items()) if isinstance(found.meta, dict) else [],
    }


def _walk(visit: Visit, found: Any) -> dict[str, Any]:
    """Return the list that the job was opened from, and the previous and next job in it."""
    words = visit.query.get("q", "")
    nothing = {"list_words": None, "list_href": None, "newer": None, "older": None}
    if not words and "list" not in visit.query:
        return nothing
    try:
        query = visit.search(words)
    except SearchError:
        return nothing
    at = cursor_of(found)
    none: list[Any] = []
    after = visit.part(None, lambda: query.page(limit=1, after=at).jobs, none, timeout=500)
    before = visit.part(None, lambda: query.page(limit=1, before=at).jobs, none, timeout=500)
    kept = {"q": words} if words else {"list": 1}

    def to(jobs: Sequence[Any]) -> str | None:
        return visit.link("job", jid=jobs[0].jid, **kept) if jobs else None

    return {
        "list_words": words,
        "list_href": visit.link("jobs", q=words),
        "newer": to(after),
        "older": to(before),
    }


def _dead_below(relatives: Family, found: Any) -> dict[str, Any] | None:
    """Return the dead jobs among a job's descendants: the newest, and how many."""
    dead, all_ = relatives.dead(), relatives.descendants()
    if not dead:
        return None
    newest = max(dead, key=lambda row: row.finished_at or row.updated_at)
    what = "children" if all(row.parent_jid == found.jid for row in all_) else "descendants"
    number = len(dead)
    return {
        "text": f"{number} of its {len(all_)} {what} {'is' if number == 1 else 'are'} dead.",
        "jid": newest.jid,
        "name": newest.job_type or newest.actor,
        "error": newest.error_type or "",
        "message": (newest.error_message or "").partition("\n")[0][:200],
        "words": f"family:{found.root_jid or found.jid} state:dead",
        "number": number,
    }


def _button(found: Any, dead: Sequence[Any]) -> dict[str, Any]:
    """Return the primary button, and the others, that work in the job's state."""
    again = "Run again" if found.state == State.DEAD else "Run this job again"
    return {
        "again": again if found.state in FINAL else None,
        "again_filled": found.state == State.DEAD and not dead,
        "lost": found.state == State.LOST,
        "now": {State.DELAYED: "Run now", State.RETRYING: "Try now"}.get(found.state, ""),
        "now_filled": found.state == State.RETRYING and not dead,
        "dead_children": len(dead),
        "dead_query": urlencode([("jid", each.jid) for each in dead]),
        "dead_text": "Run the dead child again"
        if len(dead) == 1
        else f"Run the {len(dead)} dead children again",
    }
