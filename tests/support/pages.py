"""Dashboards of the tests."""

from __future__ import annotations

from dramatiq_joblog.web import dashboard


def opened(joblog, **settings):
    """Return a dashboard that lets everyone in, as "local"."""
    return dashboard(joblog, authorize=lambda request: ("all", "local"), **settings)
