"""The job types: all of them, and one compared with its own past."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from dramatiq_joblog.errors import JobNotFound
from dramatiq_joblog.reading.compared import times
from dramatiq_joblog.schema.query import user_field, word
from dramatiq_joblog.states import FINAL, State
from dramatiq_joblog.statistics.changes import LEAST, SMALLEST, USUAL, surprise
from dramatiq_joblog.statistics.series import Percentiles

from . import axes, duration_charts
from .common import COUNTED_AT_MOST, marks_in
from .formats import percent, plain_duration
from .periods import RANGES, WEEK, period_of
from .unusual import last_week, past, type_rows

if TYPE_CHECKING:
    from starlette.responses import Response

    from dramatiq_joblog.statistics.histogram import Histogram
    from dramatiq_joblog.statistics.profile import Profile

    from .context import Visit
    from .periods import Period

#: The number of newest jobs in which the slowest jobs and busiest users are found.
LOOKED_AT = 2_000
#: The number of oldest running jobs in which those of a type are found.
RUNNING = 1_000
#: The number of rows in the lists beside the chart, and of errors.
SLOWEST, BUSIEST, ERRORS = 10, 5, 6
#: An error is new if it was not seen for this many days.
UNSEEN = 30


def types(visit: Visit) -> Response:
    """Respond with all job types, the worst change against their own past first."""
    period = period_of(visit)
    found = past(visit, period)
    rows = [] if found is None else type_rows(found)
    if visit.wants_json:
        names = ("name", "ended", "p95", "failed", "said", "is_worse")
        return visit.json({"types": [{name: row[name] for name in names} for row in rows]})
    facts = {
        "period": period,
        "ranges": list(RANGES),
        "rows": rows,
        "axis": duration_charts.STRIP_AXIS,
        "marks": duration_charts.STRIP_MARKS,
        "was_text": last_week(period, visit.zone),
        "compared": found is not None and bool(found.before),
    }
    return visit.page("types.html", "Types", facts, live=True, section="types")


def one_type(visit: Visit) -> Response:
    """Respond with one job type, or with an actor whose jobs have no type."""
    name = visit.request.path_params["name"]
    key = _key_of(visit, name)
    stem = visit.read_suffix(name, is_name=key is not None)
    if stem != name:
        name, key = stem, _key_of(visit, stem)
    period = period_of(visit)
    profile, was = _profiles(visit, name, period)
    if key is None and (profile is None or not profile.ended):
        raise JobNotFound(name)
    visit.whole(profile)
    if key == "actor" and (profile is None or not profile.ended):
        newest = visit.joblog.jobs.of_actor(name).order_by(visit.joblog.Job.created_at.desc())
        typed = next((row.job_type for row in visit.rows(None, lambda: newest.limit(1))), None)
        if typed:
            # Its jobs are listed under their type.
            return visit.to("type", name=typed, **period.query())
    words = word(key or "type", name)
    looked = _Newest(visit, name, key, period)
    if visit.wants_json:
        return visit.json(_plain(name, profile, looked))
    errors = [] if profile is None else _errors(visit, name, profile, was, period, words)
    facts = {
        "name": name,
        "words": words,
        "period": period,
        "ranges": list(RANGES),
        "profile": profile,
        "cells": [] if profile is None else _cells(profile, was, looked, words, period),
        "verdict": None if profile is None else _verdict(profile, was, errors),
        "high": duration_charts.HIGH,
        "low": duration_charts.LOW,
        "hist_high": duration_charts.HIST,
        "axis": duration_charts.STRIP_AXIS,
        "marks": duration_charts.STRIP_MARKS,
        "errors": errors,
        "failed": sum(row["count"] for row in errors),
        "newest": looked,
        "was_text": last_week(period, visit.zone),
        "was": was,
    } | _drawn(visit, profile, was, period, looked)
    return visit.page("type.html", name, facts, live=True, section="types")


def _profiles(visit: Visit, name: str, period: Period) -> tuple[Profile | None, Profile | None]:
    """Return the statistics of a name in a period, and a week before; None where unknown."""
    log, keep = visit.joblog, visit.site.keep
    since, until = period.ago(WEEK)
    profile = visit.part(
        "the charts",
        lambda: keep(
            f"profile {name} {period.key}",
            lambda: log.profile(
                name, since=period.since, until=period.until, at_most=COUNTED_AT_MOST
            ),
            times=period.times,
        ),
        None,
    )
    was = visit.part(
        None,
        lambda: keep(
            f"profile was {name} {period.key}",
            lambda: log.profile(name, since=since, until=until, at_most=COUNTED_AT_MOST),
            times=150,
        ),
        None,
    )
    is_whole = was is not None and bool(was.ended) and was.known_since is None
    return profile, was if is_whole else None


def _drawn(
    visit: Visit, profile: Profile | None, was: Profile | None, period: Period, looked: _Newest
) -> dict[str, Any]:
    """Return the charts of a job type."""
    if profile is None:
        return {"chart": None, "deploys": [], "hist": None, "parts": []}
    dots = looked.dots if profile.ended < LEAST else ()
    before = None if was is None else was.duration
    return {
        "chart": duration_charts.latency(profile, was, visit.zone, dots),
        "deploys": axes.deploys(marks_in(visit, period), profile, visit.zone),
        "hist": duration_charts.distribution(profile.duration, before),
        "parts": _parts(profile, was),
    }


def _key_of(visit: Visit, name: str) -> str | None:
    """Return the search key for a name: job type or actor; None if there are no jobs."""
    log = visit.joblog
    newest = log.jobs.of_type(name).select(log.Job.id).limit(1)
    if visit.rows(None, newest.tuples):
        return "type"
    newest = log.jobs.of_actor(name).select(log.Job.id).limit(1)
    return "actor" if visit.rows(None, newest.tuples) else None


class _Newest:
    """Facts from the newest jobs of a type: the slowest, and their users."""

    def __init__(self, visit: Visit, name: str, key: str | None, period: Period) -> None:
        rows = visit.rows(
            "the newest jobs",
            lambda: visit.site.keep(
                f"newest {name} {period.key}", lambda: self._ask(visit, name, key, period), times=2
            ),
        )
        self.capped = len(rows) > LOOKED_AT
        rows = rows[:LOOKED_AT]
        running = visit.rows(None, lambda: self._ask_running(visit, name, key))
        self.running = len(running)
        # A job that has run longer than the period is not among the newest.
        by_jid = {row.jid: row for row in [*rows, *running]}
        self._now = visit.now
        self.slowest = self._slowest(list(by_jid.values()))
        self.users, self.busiest = self._users(rows)
        self.dots = [
            (row.finished_at, row.duration or 0, row.state == State.DEAD)
            for row in rows
            if row.state in FINAL and row.duration is not None and row.finished_at is not None
            if row.finished_at >= period.since
        ]

    @staticmethod
    def _columns(job: Any) -> tuple[Any, ...]:
        # Two thousand complete rows would take longer than the rest of the page.
        return (
            *(job.jid, job.state, job.duration, job.started_at, job.finished_at),
            user_field(job).alias("user"),
        )

    def _ask(self, visit: Visit, name: str, key: str | None, period: Period) -> list[Any]:
        log, job = visit.joblog, visit.joblog.Job
        query = log.jobs.of_actor(name) if key == "actor" else log.jobs.of_type(name)
        # Jobs that ended in a period were sent before its end, rarely long before its beginning.
        since = min(period.since, period.end - timedelta(hours=1))
        query = query.where(job.created_at >= since, job.created_at < period.end)
        newest = query.order_by(job.created_at.desc(), job.id.desc()).limit(LOOKED_AT + 1)
        return list(newest.select(*self._columns(job)).namedtuples())

    def _ask_running(self, visit: Visit, name: str, key: str | None) -> list[Any]:
        log, job = visit.joblog, visit.joblog.Job
        # Use the index of states: that of types would scan all ended jobs.
        oldest = log.jobs.started().order_by(job.created_at).limit(RUNNING)
        named = (job.actor if key == "actor" else job.job_type).alias("name")
        rows = oldest.select(*self._columns(job), named).namedtuples()
        return [row for row in rows if row.name == name][:SLOWEST]

    def _lasted(self, row: Any) -> float:
        if row.state == State.STARTED and row.started_at is not None:
            passed: float = (self._now - row.started_at) / timedelta(milliseconds=1)
            return max(0.0, passed)
        return float(row.duration or 0) if row.state in FINAL else 0.0

    def _slowest(self, rows: list[Any]) -> list[dict[str, Any]]:
        rows = sorted(rows, key=self._lasted, reverse=True)[:SLOWEST]
        top = max((self._lasted(row) for row in rows), default=0) or 1
        return [
            {
                "jid": row.jid,
                "user": row.user,
                "look": "started" if row.state == State.STARTED else "ink2",
                "state": str(row.state),
                "share": round(100 * self._lasted(row) / top, 1),
                "duration": self._lasted(row),
                "since": None
                if row.state != State.STARTED or row.started_at is None
                else round(row.started_at.timestamp() * 1000),
            }
            for row in rows
            if self._lasted(row) > 0
        ]

    @staticmethod
    def _users(rows: list[Any]) -> tuple[int, list[dict[str, Any]]]:
        jobs: Counter[Any] = Counter()
        failed: Counter[Any] = Counter()
        for row in rows:
            user = row.user
            if user is not None:
                jobs[user] += 1
                failed[user] += row.state == State.DEAD
        top = max(jobs.values(), default=1)
        busiest = [
            {
                "user": user,
                "jobs": count,
                "failed": failed[user],
                "share": round(100 * count / top, 1),
                "bad": round(100 * failed[user] / top, 1),
            }
            for user, count in jobs.most_common(BUSIEST)
        ]
        return len(jobs), busiest


def _cells(
    profile: Any, was: Any, newest: _Newest, words: str, period: Period
) -> list[dict[str, Any]]:
    now = Percentiles.of(profile.duration)
    before = None if was is None else Percentiles.of(was.duration)
    queued = profile.queue_times.percentile(0.95)
    hours = period.length / 3_600_000
    rate, share = profile.ended / hours, _failed(profile)

    def cell(name: str, value: Any, earlier: Any, query: str, **more: Any) -> dict[str, Any]:
        note = more.get("note") or ("" if earlier is None else f"was {earlier}")
        return {"name": name, "value": value, "note": note, "q": f"{words} {query}"}

    def lasts(name: str) -> Any:
        return cell(
            name,
            None if now.count == 0 else plain_duration(getattr(now, name)),
            None if before is None else plain_duration(getattr(before, name)),
            f"{period.words} duration:>={getattr(now, name) or 0}ms",
            note=f"{newest.running} still running" if name == "p99" and newest.running else None,
        )

    return [
        *(lasts(name) for name in ("p50", "p95", "p99")),
        cell(
            "Queue, p95",
            None if queued is None else plain_duration(queued),
            None if was is None else plain_duration(was.queue_times.percentile(0.95)),
            f"{period.words} queue_time:>={queued or 0}ms",
        ),
        cell(
            "Jobs per hour",
            _rate(rate),
            None if was is None else _rate(was.ended / hours),
            period.words,
        ),
        cell(
            "Failed runs",
            None if share is None else percent(share),
            None if was is None else percent(_failed(was) or 0.0),
            f"{period.words} error:*",
        ),
        cell(
            "Users",
            f"{newest.users}{'+' * newest.capped}",
            None,
            period.words,
            note="of the newest 2\u202f000 jobs" if newest.capped else None,
        ),
    ]


def _rate(value: float) -> str:
    return f"{value:,.0f}".replace(",", "\u202f") if value >= 10 else f"{value:.2g}"


def _failed(profile: Any) -> float | None:
    counts = profile.counts
    bad = counts["dead"] + counts["retried"]
    ran = bad + counts["finished"]
    return bad / ran if ran else None


def _verdict(profile: Any, was: Any, errors: list[dict[str, Any]]) -> str:
    """Return a sentence on what changed; empty if nothing did or can be compared."""
    if was is None:
        return ""
    texts = []
    now, before = profile.duration.percentile(0.95), was.duration.percentile(0.95)
    enough = min(profile.duration.count, was.duration.count) >= LEAST
    if enough and now and before and _is_more(now, before, profile.ended):
        texts.append(f"Slower than usual: p95 is {times(now / before)} as long")
    share, usually = _failed(profile) or 0.0, _failed(was) or 0.0
    enough = profile.ended >= LEAST and was.ended >= LEAST
    if enough and share > 0.01 and _is_more(share, max(usually, 0.001), profile.ended):
        texts.append(f"Failing more than usual: {percent(share)}, usually {percent(usually)}")
    new = [row["error"] for row in errors if row["flag"] == "new"]
    if new:
        texts.append(f"{' and '.join(new[:2])} {'is' if len(new) == 1 else 'are'} new")
    return ". ".join(texts) + "." * bool(texts)


def _is_more(now: float, before: float, jobs: int) -> bool:
    return now / before >= SMALLEST and surprise(now, [before], jobs) >= USUAL


def _errors(  # noqa: PLR0917 - one list needs all of these
    visit: Visit, name: str, profile: Any, was: Any, period: Period, words: str
) -> list[dict[str, Any]]:
    total = sum(profile.errors.values()) + profile.counts["interrupted"]

    def known() -> set[str] | None:
        # In whole days and hours, so that they do not overlap the period itself.
        hour = period.since.replace(minute=0, second=0, microsecond=0)
        day = hour.replace(hour=0)
        profiles = [
            visit.joblog.profile(name, since=since, until=until, at_most=COUNTED_AT_MOST)
            for since, until in ((day - timedelta(days=UNSEEN), day), (day, hour))
        ]
        if any(profile.known_since is not None for profile in profiles):
            return None
        return {error for profile in profiles for error in profile.errors}

    seen = visit.part(
        None, lambda: visit.site.keep(f"errors {name} {period.key}", known, times=150), None
    )
    counts = dict(profile.errors.most_common(ERRORS))
    rows = []
    for error, count in counts.items():
        before = 0 if was is None else was.errors.get(error, 0)
        flag = ""
        if seen is not None and was is not None and error not in seen:
            flag = "new"
        elif was is not None and count >= 3 and count >= 3 * before:
            flag = "rising"
        rows.append(
            {
                "error": error or "no error",
                "count": count,
                "share": count / total,
                "flag": flag,
                "was": before,
                "look": "dead",
                "words": f"{words} {word('error', error)} {period.words}",
            }
        )
    if lost := profile.counts["interrupted"]:
        rows.append(
            {
                "error": "Lost with their worker",
                "count": lost,
                "share": lost / total,
                "flag": "",
                "was": 0 if was is None else was.counts["interrupted"],
                "look": "lost",
                "words": words,
            }
        )
    return rows


def _parts(profile: Any, was: Any) -> list[dict[str, Any]]:
    """Return the parts of the total time: in the queue, and in the last run."""
    pairs = (("Queue", profile.queue_times), ("Run", profile.duration))
    before = (None, None) if was is None else (was.queue_times, was.duration)
    rows = []
    for (text, histogram), earlier in zip(pairs, before, strict=True):
        p95 = _p95(earlier)
        strip = duration_charts.strip(Percentiles.of(histogram), p95)
        rows.append({"name": text, "strip": strip, "p95": _p95(histogram), "was": p95})
    return rows


def _p95(histogram: Histogram | None) -> int | None:
    return None if histogram is None else histogram.percentile(0.95)


def _plain(name: str, profile: Any, newest: _Newest) -> dict[str, Any]:
    document: dict[str, Any] = {"name": name, "slowest": newest.slowest, "users": newest.busiest}
    if profile is not None:
        document |= {
            "since": profile.since.isoformat(),
            "until": profile.until.isoformat(),
            "step": profile.step,
            "series": profile.series,
            "duration": vars(Percentiles.of(profile.duration)),
            "queue_time": vars(Percentiles.of(profile.queue_times)),
            "errors": dict(profile.errors),
            "actors": profile.actors,
        }
    return document
