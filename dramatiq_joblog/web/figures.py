"""The figures of every page: problems, and the numbers in its navigation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dramatiq_joblog.states import State

if TYPE_CHECKING:
    from collections.abc import Callable

    from dramatiq_joblog.admin.problem import Problem

    from .hidden import Visible
    from .state import Site

#: Milliseconds for the problem checks.
PROBLEMS_WITHIN = 2_000


class Figures:
    """The figures of one request, each queried at most once, and cached by the dashboard.

    Parameters:
      site: The dashboard.
      visible: What the visitor may see.
      part: Queries a part of the page, like :meth:`Visit.part`.
    """

    def __init__(self, site: Site, visible: Visible, part: Callable[..., Any]) -> None:
        self._site = site
        self._log = site.joblog
        self._visible = visible
        self._part = part
        self._known: dict[str, Any] = {}

    def navigation(self, *, counted: bool) -> list[tuple[str, str, str, Any]]:
        """Return the navigation; *counted* is false for error pages, which make no query."""
        dead = locks = workers = alerts = None
        if counted:
            dead = self.counts().get(State.DEAD)
            locks = self._kept("locks", self._log.locks.count)
            workers = self._kept("workers", self._alive)
            alerts = self._kept("alerts", self._open_alerts)
        return [
            ("overview", "Overview", "n-over", None),
            ("jobs", "Jobs", "n-jobs", None),
            ("types", "Types", "n-type", None),
            ("dead", "Dead", "dead", dead),
            ("queues", "Queues", "n-queue", None),
            ("locks", "Locks", "lock", locks),
            ("workers", "Workers", "n-work", workers),
            ("alerts", "Alerts", "n-alert", alerts),
        ]

    def counts(self) -> dict[Any, Any]:
        """Return the number of jobs in each state, without dismissed ones; capped."""
        return self._kept("counts", self._log.counts) or {}

    def problems(self) -> list[Problem]:
        """Return the problems that are not muted, at most some seconds old."""
        return [problem for problem in self.all_problems() if problem.muted is None]

    def all_problems(self) -> list[Problem]:
        """Return all problems, including muted ones, at most some seconds old."""
        timeout = min(self._site.timeout, PROBLEMS_WITHIN)
        found: list[Problem] = self._site.keep(
            "problems", lambda: self._log.problems(timeout=timeout, muted=True), times=2
        )
        return [self._visible.problem(problem) for problem in found]

    def _alive(self) -> int:
        worker = self._log.Worker
        gone = worker.ended_at.is_null(False) | worker.swept_at.is_null(False)
        return int(self._log.workers.where(~gone).count())

    def _open_alerts(self) -> int:
        state = self._log.core.tables.alert
        return int(state.select().where(state.is_open).count())

    def _kept(self, name: str, ask: Callable[[], Any]) -> Any:
        """Return a figure of every page, queried at most once per visit, and cached."""
        if name not in self._known:
            self._known[name] = self._site.keep(
                name, lambda: self._part(f"the number of {name}", ask, None)
            )
        return self._known[name]
