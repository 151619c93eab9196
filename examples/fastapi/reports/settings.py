"""The settings, from the environment."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass, field


def _from(name: str, default: str) -> str:
    return os.environ.get(f"REPORTS_{name}", default)


@dataclass(frozen=True)
class Settings:
    """What differs between a laptop and production."""

    #: Where the log is.
    database: str = field(default_factory=lambda: _from("DATABASE", "sqlite:///reports.db"))
    #: Where messages are sent.
    redis: str = field(default_factory=lambda: _from("REDIS", "redis://localhost:6379/0"))
    #: Signs the sessions; all replicas need the same.
    secret: str = field(default_factory=lambda: _from("SECRET", secrets.token_hex(32)))
    #: Opens the page's metrics to Prometheus, if it is set.
    metrics_token: str | None = field(default_factory=lambda: _from("METRICS_TOKEN", "") or None)
    #: Who may see the page of all jobs.
    admins: frozenset[str] = field(
        default_factory=lambda: frozenset(_from("ADMINS", "grace").split(","))
    )


settings = Settings()
