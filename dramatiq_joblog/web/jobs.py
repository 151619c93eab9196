"""The list of jobs: its search, its tabs, its pages."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from dramatiq_joblog.errors import SearchError
from dramatiq_joblog.reading import search
from dramatiq_joblog.reading.counts import DEFAULT_CAP, Count
from dramatiq_joblog.reading.display import number
from dramatiq_joblog.reading.saved import MAX_NAME, MOST
from dramatiq_joblog.schema.query import COMPARABLE, Page, word
from dramatiq_joblog.states import CANCELLABLE, FINAL, State

from .common import PER_PAGE
from .common import lines as lines_of
from .formats import count as how_many
from .formats import spell
from .presenters import JobRow, places

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from starlette.responses import Response

    from .context import Visit

#: The tabs, in order of urgency.
_TABS = (
    *(State.DEAD, State.LOST, State.RETRYING, State.STARTED, State.WAITING),
    *(State.ENQUEUED, State.DELAYED, State.FINISHED, State.SKIPPED),
)
#: The number of newest jobs among which the list is sorted.
SORTED = 2_000
#: Milliseconds for counting a search; without counts the page is still useful.
COUNTING = 60


def jobs(visit: Visit) -> Response:
    """Respond with the jobs that match a search, newest first."""
    words = visit.query.get("q", "").strip()
    try:
        terms = search.parse(words)
        query = visit.search(words)
        sort = _sort(visit)
        page = visit.part("the jobs", lambda: _page(visit, query, sort), None)
    except SearchError as e:
        return _not_understood(visit, words, e)
    found = [] if page is None else [visit.visible.row(job) for job in page.jobs]
    if visit.wants_json:
        return visit.json(
            {
                "q": words,
                "jobs": [visit.visible.as_dict(job) for job in found],
                "newer": page and page.newer,
                "older": page and page.older,
            }
        )
    if len(found) == 1 and len(terms) == 1 and found[0].jid == words:
        # A complete jid has only one match.
        return visit.to("job", jid=found[0].jid)
    known = {str(job.id) for job in found}
    watched = [n for n in visit.query.get("watch", "").split(",")[:200] if n.isdigit()]
    gone = [int(n) for n in watched if n not in known and len(n) < 19]
    others = _by_ids(visit, gone) if gone else []
    counts = _counts(visit, terms)
    facts = {
        "words": words,
        "tabs": _tabs(visit, terms, counts),
        "rows": _rows(visit, found),
        "others": _rows(visit, others),
        "newer": page and page.newer and visit.link.here(after=page.newer, before=None),
        "older": page and page.older and visit.link.here(before=page.older, after=None),
        "pager_text": _pager_text(len(found), page, visit),
        "longest": MAX_NAME,
        "sort": sort,
        "list_query": {"q": words} if words else {"list": 1},
        "matching": _matching(words, terms, counts),
        "saved": _saved(visit, words),
    }
    return visit.page("jobs.html", "Jobs", facts, live=True, section="jobs")


def _sort(visit: Visit) -> str:
    """Return the column by which the list is sorted; empty for newest first.

    Raises:
      SearchError: If it is no such column.
    """
    sort = visit.query.get("sort", "")
    if sort and sort not in COMPARABLE:
        raise SearchError(f"sort={sort!r} is not offered: use one of {', '.join(COMPARABLE)}")
    return sort


def _page(visit: Visit, query: Any, sort: str) -> Page[Any]:
    if not sort:
        page: Page[Any] = query.page(limit=PER_PAGE, **_place(visit))
        return page
    return Page(query.greatest(sort, limit=PER_PAGE, among=SORTED), None, None)


def _place(visit: Visit) -> dict[str, str | None]:
    before, after = visit.query.get("before"), visit.query.get("after")
    return {"after": after} if after else {"before": before or None}


def _not_understood(visit: Visit, words: str, error: SearchError) -> Response:
    if visit.wants_json:
        return visit.json({"error": str(error)}, 400)
    facts: dict[str, Any] = {
        **dict.fromkeys(("newer", "older", "matching", "pager_text")),
        **dict.fromkeys(("rows", "others"), ()),
        "words": words,
        "longest": MAX_NAME,
        "sort": "",
        "list_query": {},
        "problem": str(error),
        "tabs": _tabs(visit, [], visit.figures.counts()),
        "saved": _saved(visit, words),
    }
    return visit.page("jobs.html", "Jobs", facts, section="jobs", status_code=400)


def _saved(visit: Visit, words: str) -> list[dict[str, Any]]:
    """Return the saved searches, and which of them is the current one."""
    found = visit.rows(None, lambda: visit.joblog.searches.limit(MOST))
    return [
        {
            "name": row.name,
            "words": row.words,
            "who": row.who,
            "is_here": row.words == words,
            "href": visit.link("jobs", q=row.words),
        }
        for row in found
        if visit.may_ask(row.words)
    ]


def _by_ids(visit: Visit, numbers: Sequence[int]) -> list[Any]:
    job = visit.joblog.Job
    ask = visit.joblog.jobs.where(job.id.in_(numbers))
    found: list[Any] = visit.rows("rows further down", lambda: ask)
    return found


def _rows(visit: Visit, found: Iterable[Any]) -> list[JobRow]:
    found = list(found)
    keys = {job.section for job in found if job.state == State.WAITING and job.section}
    lines = lines_of(visit, sorted(keys)) if keys else {}
    number_of = places(lines)
    seen = visit.access.sees_arguments
    return [JobRow(job, visit.now, number_of.get(job.jid), seen=seen) for job in found]


def _counts(visit: Visit, terms: Sequence[search.Term]) -> dict[Any, Any]:
    """Count the jobs of a search by state, ignoring its own state, if that is fast enough."""
    others = [term for term in terms if term.key != "state"]
    if not others:
        return visit.figures.counts()
    words = spell(others)
    query = visit.search(words)

    def count() -> dict[Any, Any]:
        return visit.part(None, lambda: visit.joblog.counts(query), {}, timeout=COUNTING)

    # Do not retry a search that cannot be counted at every update.
    counts: dict[Any, Any] = visit.site.keep(f"counts {visit.zone} {words}", count, times=5)
    return counts


def _tabs(
    visit: Visit, terms: Sequence[search.Term], counts: dict[Any, Any]
) -> list[dict[str, Any]]:
    chosen = {term.value for term in terms if term.key == "state" and not term.negated}
    others = [term for term in terms if term.key != "state"]

    def tab(state: str | None, count: Any) -> dict[str, Any]:
        kept = [*others, search.Term("state", state)] if state else others
        return {
            "name": state or "all",
            "state": state,
            "word": state.capitalize() if state else "All",
            "count": count,
            "current": chosen == ({state} if state else set()),
            "split": state == State.FINISHED,
            "href": visit.link("jobs", q=spell(kept)),
        }

    return [tab(None, _sum(counts)), *(tab(str(state), counts.get(state)) for state in _TABS)]


def _sum(counts: dict[Any, Any]) -> Any:
    """Return the sum of counts, capped if any is."""
    if not counts:
        return None
    capped = any(getattr(count, "capped", False) for count in counts.values())
    return Count.up_to(DEFAULT_CAP, DEFAULT_CAP + 1 if capped else sum(counts.values()))


def _pager_text(shown: int, page: Any, visit: Visit) -> str:
    if page is None:
        return ""
    if sort := visit.query.get("sort"):
        column = sort.replace("_", " ")
        return f"{shown} jobs, greatest {column} first, of the newest {number(SORTED)}"
    text = f"{shown} job{'s' * (shown != 1)}, newest first"
    if page.looked_back_to is not None:
        # The search has no index: report how far back this page looked.
        return (
            f"{text}, of those sent since {page.looked_back_to.astimezone(visit.zone):%d %b %H:%M}"
        )
    whole = not page.newer and not page.older and not visit.query.get("before")
    return text + ("" if whole else ", more to see")


def _matching(
    words: str, terms: Sequence[search.Term], counts: dict[Any, Any]
) -> dict[str, str] | None:
    """Return the offer to select all matching jobs, if the search is for a single state."""
    chosen = [term.value for term in terms if term.key == "state" and not term.negated]
    if len(chosen) != 1 or chosen[0] not in {str(state) for state in (*FINAL, *CANCELLABLE)}:
        return None
    count = counts.get(State(chosen[0]))
    if not count:
        return None
    some = how_many(count)
    return {"text": f"Select all {some} {chosen[0]}", "q": words, "count": some}


def complete(visit: Visit) -> Response:
    """Respond with completions of a word of a search."""
    key, _, prefix = visit.query.get("word", "").partition(":")
    found: list[tuple[str, Any]] = []
    if not _ and key.lower().startswith("args."):
        if visit.may_ask("args.x:x"):
            ask = partial(visit.joblog.complete, "args.", key[5:])
            found = visit.part(None, ask, found, timeout=500)
        names = [{"word": f"args.{name}:", "hint": "an argument"} for name, _ in found]
        return visit.json({"words": names})
    if not _:
        hints = {f"{k}:": hint for k, hint in search.KEYS.items()}
        hints["args."] = "an argument by its name"
        # Not named "word": Python 3.12.1 would take the function below for a local variable.
        fit = [(begin, hint) for begin, hint in hints.items() if begin.startswith(key.lower())]
        return visit.json({"words": [{"word": begin, "hint": hint} for begin, hint in fit]})
    if key and visit.may_ask(f"{key}:x"):
        found = visit.part(
            None, lambda: visit.joblog.complete(key, prefix.strip('"')), [], timeout=500
        )
    if key in {"since", "until", "ended"}:
        spans = ("15m", "1h", "24h", "7d", "today", "yesterday")
        found = [(span, None) for span in spans if span.startswith(prefix)]
    completions = [
        {"word": word(key, value), "count": count, "capped": getattr(count, "capped", False)}
        for value, count in found
    ]
    return visit.json({"words": completions})
