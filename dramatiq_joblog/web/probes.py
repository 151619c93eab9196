"""Health checks and Prometheus metrics."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from starlette.responses import Response

from dramatiq_joblog.admin.audit import retries_lost
from dramatiq_joblog.payload.values import host_now
from dramatiq_joblog.schema.migrations import compare
from dramatiq_joblog.states import IN_PROGRESS, ProblemKind, State
from dramatiq_joblog.statistics.histogram import BOUNDS

from .common import COUNTED_AT_MOST
from .presenters import WorkerRow

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dramatiq_joblog.admin.problem import Problem
    from dramatiq_joblog.joblog import JobLog

    from .context import Visit

#: Upper bounds of the histograms, in seconds.
_LE = (0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 600, 1800, 3600)
#: The maximum number of alerts with a metric.
_MOST_ALERTS = 200
#: The beginning of counters: totals outlive the jobs, so counters only grow.
_BEGIN = datetime(2020, 1, 1, tzinfo=timezone.utc)


def health(visit: Visit) -> Response:
    """Respond with the health of the database, its schema, the workers, and the problems.

    The status is 200, or 503 if the database does not reply in time.
    """
    log = visit.joblog
    alive, lost = _workers(visit)
    if visit.missing:
        return visit.late()
    version = _schema(log)
    return visit.json(
        {
            "ok": True,
            "database": log.name,
            "now": log.now().isoformat(),
            "schema": version,
            "workers": {"alive": alive, "possibly_dead": lost},
            "problems": [problem.as_dict() for problem in visit.figures.problems()],
        }
    )


def metrics(visit: Visit) -> Response:
    """Respond with the metrics of the log, in Prometheus's format."""
    log = visit.joblog
    alive, lost = _workers(visit)
    counts = visit.figures.counts()
    active = visit.rows("jobs by type", lambda: _by_type(log))
    oldest = visit.rows("the oldest", lambda: log.oldest(limit=1))
    stats = visit.part(
        "the histograms",
        lambda: visit.site.keep(
            "metrics", lambda: log.stats(since=_BEGIN, at_most=COUNTED_AT_MOST), times=15
        ),
        None,
    )
    if stats is not None and stats.known_since is not None:
        # With incomplete figures, a counter could decrease later.
        visit.whole(stats)
        stats = None
    retries = visit.part("the lost retries", lambda: retries_lost(log.Job, host_now())[0], None)
    refused: list[tuple[dict[str, str], float]] = [] if retries is None else [({}, retries)]
    age = 0.0
    if oldest:
        sent = oldest[0].enqueued_at or oldest[0].created_at
        age = max(0.0, (visit.now - sent).total_seconds())
    families: list[Metric] = [
        _gauge("joblog_jobs", "Jobs by state, up to 10000.", _states(counts)),
        _gauge("joblog_active_jobs", "Jobs that have not ended, by job type.", active),
        _gauge("joblog_oldest_due_seconds", "Age of the oldest job that is due.", [({}, age)]),
        _gauge("joblog_retries_lost", "Dead jobs whose retry the broker refused.", refused),
        _gauge(
            "joblog_workers",
            "Worker processes.",
            [({"state": "alive"}, alive), ({"state": "possibly_dead"}, lost)],
        ),
    ]
    families.append(_problems(visit.figures.problems()))
    if stats is not None:
        families += [
            _ended(stats),
            _histogram("joblog_duration_seconds", "Duration of the last runs of jobs.", stats),
            _histogram("joblog_queue_time_seconds", "Time before the first run.", stats),
        ]
    alerts = visit.rows("the alerts", lambda: log.alerts.limit(_MOST_ALERTS))
    if alerts:
        open_now = [({"name": state.key}, float(state.is_open)) for state in alerts]
        families.append(_gauge("joblog_alert_open", "1 for an alert that is open.", open_now))
    text = generate_latest(_Scrape(families)).decode()
    text += "".join(f"# {missing}\n" for missing in visit.banners)
    return Response(text, headers={"content-type": CONTENT_TYPE_PLAIN_0_0_4})


class _Scrape(Collector):
    """The metrics of one scrape."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _workers(visit: Visit) -> tuple[int, int]:
    log = visit.joblog
    now = log.now()
    found = visit.rows(
        "the workers", lambda: log.workers.where(log.Worker.ended_at.is_null()).limit(1000)
    )
    looks = [WorkerRow(worker, (), now).look for worker in found]
    return looks.count("ok"), looks.count("lost")


def _problems(problems: Sequence[Problem]) -> Metric:
    """Return the number of problems of each kind, including zeros."""
    found = Counter(problem.kind for problem in problems)
    samples = [({"kind": kind.value}, float(found[kind])) for kind in ProblemKind]
    return _gauge("joblog_problems", "Problems that need attention, by kind.", samples)


def _schema(log: JobLog[Any]) -> str:
    """Return the state of the tables: whether they match this version."""
    missing, ahead = compare(log.database, log.Job)
    return "behind" if missing else "ahead" if ahead else "current"


def _by_type(log: JobLog[Any]) -> list[tuple[dict[str, str], float]]:
    states = (State.ENQUEUED, State.DELAYED, State.WAITING, *IN_PROGRESS, State.LOST)
    found: dict[tuple[str, str], int] = {}
    job = log.Job
    # Unordered: ordered by newest, the query would scan all jobs.
    active = log.jobs.in_state(*states).order_by()
    for row in active.select(job.job_type, job.state).limit(10_000).tuples():
        key = (row[0] or "", str(row[1]))
        found[key] = found.get(key, 0) + 1
    return [({"job_type": kind, "state": state}, n) for (kind, state), n in sorted(found.items())]


def _states(counts: dict[Any, Any]) -> list[tuple[dict[str, str], float]]:
    return [({"state": str(state)}, int(count)) for state, count in counts.items()]


def _ended(stats: Any) -> Metric:
    family = CounterMetricFamily(
        "joblog_ended", "Ends of runs, by outcome.", labels=("job_type", "outcome")
    )
    for group in stats.groups:
        for outcome, count in group.counts.items():
            family.add_metric((group.name, str(outcome)), count)
    return family


def _histogram(name: str, text: str, stats: Any) -> Metric:
    family = HistogramMetricFamily(name, text, labels=("job_type",))
    for group in stats.groups:
        histogram = group.durations if "duration" in name else group.queue_times
        if not histogram.count:
            continue
        buckets: list[tuple[str, float]] = [
            (f"{le:g}", sum(n for at, n in histogram.items() if BOUNDS[at] < le * 1000))
            for le in _LE
        ]
        buckets.append(("+Inf", histogram.count))
        family.add_metric((group.name,), buckets, sum_value=_sum(histogram))
    return family


def _sum(histogram: dict[int, int]) -> float:
    """Return the approximate total duration, in seconds."""
    return sum(n * BOUNDS[bucket] for bucket, n in histogram.items()) / 1000


def _gauge(name: str, text: str, samples: Sequence[tuple[dict[str, str], float]]) -> Metric:
    labels = tuple(samples[0][0]) if samples else ()
    family = GaugeMetricFamily(name, text, labels=labels)
    for values, figure in samples:
        family.add_metric(tuple(values.values()), figure)
    return family
