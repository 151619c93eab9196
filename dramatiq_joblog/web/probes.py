"""What other programs ask: is it well, and its figures as Prometheus reads them."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from dramatiq_joblog.schema.migrations import compare
from dramatiq_joblog.states import IN_PROGRESS, State
from dramatiq_joblog.statistics.histogram import BOUNDS

from .presenters import WorkerRow

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .context import Visit

#: Upper bounds of the histograms, in seconds.
_LE = (0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 600, 1800, 3600)
#: Counters are of all that the log knows of: totals outlive the jobs, so they only grow.
_BEGIN = datetime(2020, 1, 1, tzinfo=timezone.utc)
_TEXT = "text/plain; version=0.0.4; charset=utf-8"


def health(visit: Visit) -> Response:
    """Answer whether the database answers, whether its schema fits, and who works.

    The status is 200, or 503 if the database does not answer.
    """
    log = visit.joblog
    alive, lost = _workers(visit)
    version = _schema(log)
    return visit.json(
        {
            "ok": True,
            "database": log.name,
            "now": log.now().isoformat(),
            "schema": version,
            "workers": {"alive": alive, "possibly_dead": lost},
        }
    )


def metrics(visit: Visit) -> Response:
    """Answer with the figures of the log, as Prometheus reads them."""
    log = visit.joblog
    alive, lost = _workers(visit)
    counts = visit.counts()
    active = visit.rows("jobs by type", lambda: _by_type(log))
    oldest = visit.rows("the oldest", lambda: log.oldest(limit=1))
    stats = visit.part(
        "the histograms",
        lambda: visit.site.keep("metrics", lambda: log.stats(since=_BEGIN), times=15),
        None,
    )
    age = 0.0
    if oldest:
        sent = oldest[0].enqueued_at or oldest[0].created_at
        age = max(0.0, (visit.now - sent).total_seconds())
    lines = [
        *_gauge("joblog_jobs", "Jobs by state, up to 10000.", _states(counts)),
        *_gauge("joblog_active_jobs", "Jobs that have not ended, by job type.", active),
        *_gauge("joblog_oldest_due_seconds", "Age of the oldest job that is due.", [({}, age)]),
        *_gauge("joblog_workers", "Worker processes.", [({"state": "alive"}, alive)]),
        *_sample("joblog_workers", [({"state": "possibly_dead"}, lost)]),
    ]
    if stats is not None:
        lines += [
            *_family("joblog_ended_total", "Ends of runs, by outcome.", "counter", _ended(stats)),
            *_histogram("joblog_duration_seconds", "Duration of the last runs of jobs.", stats),
            *_histogram("joblog_queue_time_seconds", "Time before the first run.", stats),
        ]
    if visit.banners:
        lines += [f"# {text}" for text in visit.banners]
    return Response("\n".join(lines) + "\n", media_type=_TEXT)


def _workers(visit: Visit) -> tuple[int, int]:
    log = visit.joblog
    now = log.now()
    found = visit.rows(
        "the workers", lambda: log.workers.where(log.Worker.ended_at.is_null()).limit(1000)
    )
    looks = [WorkerRow(worker, (), now).look for worker in found]
    return looks.count("ok"), looks.count("lost")


def _schema(log: Any) -> str:
    """Tell whether the tables are of this version."""
    missing, ahead = compare(log.database, log.Job)
    return "behind" if missing else "ahead" if ahead else "current"


def _by_type(log: Any) -> list[tuple[dict[str, str], float]]:
    states = (State.ENQUEUED, State.DELAYED, State.WAITING, *IN_PROGRESS, State.LOST)
    found: dict[tuple[str, str], int] = {}
    job = log.Job
    # Without an order: by the newest first all jobs would be walked.
    active = log.jobs.in_state(*states).order_by()
    for row in active.select(job.job_type, job.state).limit(10_000).tuples():
        key = (row[0] or "", str(row[1]))
        found[key] = found.get(key, 0) + 1
    return [({"job_type": kind, "state": state}, n) for (kind, state), n in sorted(found.items())]


def _states(counts: dict[Any, Any]) -> list[tuple[dict[str, str], float]]:
    return [({"state": str(state)}, int(count)) for state, count in counts.items()]


def _ended(stats: Any) -> list[tuple[dict[str, str], float]]:
    return [
        ({"job_type": group.name, "outcome": outcome}, count)
        for group in stats.groups
        for outcome, count in group.counts.items()
    ]


def _histogram(name: str, text: str, stats: Any) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} histogram"
    for group in stats.groups:
        histogram = group.durations if "duration" in name else group.queue_times
        if not histogram.count:
            continue
        labels = {"job_type": group.name}
        for bound in _LE:
            inside = sum(n for bucket, n in histogram.items() if BOUNDS[bucket] < bound * 1000)
            yield from _sample(f"{name}_bucket", [({**labels, "le": f"{bound:g}"}, inside)])
        yield from _sample(f"{name}_bucket", [({**labels, "le": "+Inf"}, histogram.count)])
        yield from _sample(f"{name}_sum", [(labels, _sum(histogram))])
        yield from _sample(f"{name}_count", [(labels, histogram.count)])


def _sum(histogram: dict[int, int]) -> float:
    """Return about how many seconds they took together."""
    return sum(n * BOUNDS[bucket] for bucket, n in histogram.items()) / 1000


def _gauge(name: str, text: str, samples: Iterable[tuple[dict[str, str], float]]) -> Iterator[str]:
    return _family(name, text, "gauge", samples)


def _family(
    name: str, text: str, kind: str, samples: Iterable[tuple[dict[str, str], float]]
) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
    yield from _sample(name, samples)


def _sample(name: str, samples: Iterable[tuple[dict[str, str], float]]) -> Iterator[str]:
    for labels, value in samples:
        inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
        yield f"{name}{{{inside}}} {_figure(value)}" if inside else f"{name} {_figure(value)}"


def _figure(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
