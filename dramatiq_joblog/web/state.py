"""The state of one dashboard: its log, its settings, and cached figures."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.resources
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import jinja2

from dramatiq_joblog.asking.threads import Threads

from . import assets
from .charts import flow_path, name_of
from .formats import FILTERS, text

if TYPE_CHECKING:
    from collections.abc import Callable

    from dramatiq_joblog.joblog import JobLog

    from .door import Door

T = TypeVar("T")

#: Seconds that a shared figure is cached.
FRESH_FOR = 2.0
#: The maximum number of cached figures, including counts of searches.
KEPT_AT_MOST = 200


@functools.cache
def _templates() -> jinja2.Environment:
    """Return the templates, compiled once for all dashboards of a process."""
    # All are read at the start: an upgrade of the package replaces the files of a running process.
    folder = importlib.resources.files(__package__) / "templates"
    texts = {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}
    environment = jinja2.Environment(
        autoescape=True,
        finalize=text,
        loader=jinja2.DictLoader(texts),
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= FILTERS | {"flow": flow_path, "name_of": name_of}
    return environment


@functools.cache
def _version() -> str:
    return importlib.metadata.version("dramatiq-joblog")


@dataclass
class Site:
    """The state of one dashboard; several in a process are independent."""

    joblog: JobLog[Any]
    broker: Any
    door: Door | None
    environment: str | None
    every: int
    job_links: Callable[[Any], Any] | None
    time_zone: str
    timeout: int
    title: str
    #: Whether it is exported, and so shows a single moment.
    frozen: bool = False
    version: str = field(default_factory=_version)
    assets: str = field(default_factory=assets.version)
    templates: jinja2.Environment = field(default_factory=_templates)
    threads: Threads = field(default_factory=Threads)
    _kept: dict[str, tuple[float, Any]] = field(default_factory=dict)
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def keep(self, name: str, ask: Callable[[], T], *, times: int = 1) -> T:
        """Return a cached figure, at most two seconds old, times *times*.

        Many visitors of a page then cost the database no more than one.
        """
        with self._guard:
            at, value = self._kept.get(name, (0.0, None))
        if at and (self.frozen or time.monotonic() - at < FRESH_FOR * times):
            kept: T = value
            return kept
        fresh = ask()
        if fresh is None:
            # The query timed out: show the last value, with a message.
            fresh = value
        with self._guard:
            if len(self._kept) >= KEPT_AT_MOST:
                self._kept.clear()
            self._kept[name] = time.monotonic(), fresh
        return fresh

    def forget(self) -> None:
        """Clear the cache, after an action."""
        with self._guard:
            self._kept.clear()
