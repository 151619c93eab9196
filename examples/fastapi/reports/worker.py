"""What a worker runs: ``dramatiq --skip-logging reports.worker``."""

from __future__ import annotations

from . import logs
from .jobs import broker

logs.configure()

__all__ = ["broker"]
