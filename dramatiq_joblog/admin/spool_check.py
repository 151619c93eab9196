"""The check of this host's spool: whether events wait in it, and whether it lasts."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Protocol

from dramatiq_joblog.database.dialects import dialect_of
from dramatiq_joblog.recording.heartbeat import HOST
from dramatiq_joblog.recording.mounts import PASSING, file_system_of
from dramatiq_joblog.states import ProblemKind

from .problem import Look, plural, seen

if TYPE_CHECKING:
    from peewee import Database

    from dramatiq_joblog.recording.spool import Spool
    from dramatiq_joblog.recording.writer import Writer

#: Seconds that events may stay in a spool while the database is available.
MAX_SPOOLED = 60


class Spooling(Protocol):
    """Where events wait while the database is unavailable."""

    @property
    def database(self) -> Database:
        """The database."""

    @property
    def spool(self) -> Spool:
        """The events on this host's disk."""

    @property
    def writer(self) -> Writer:
        """Knows what happens to events meanwhile."""


def look_at_spools(core: Spooling) -> Look:
    """Check for events that wait, and whether they would survive a reboot."""
    waiting = core.spool.files()
    if not waiting:
        return _place_of(core)
    oldest = max(file.age for file in waiting)
    text = (
        f"{plural(len(waiting), 'file')} of {sum(file.size for file in waiting)} bytes in "
        f"{core.spool.folder}, the oldest for {oldest:.0f} s"
    )
    left = sum(not file.in_use for file in waiting)
    if left:
        text += f"; {left} of them by processes that are gone"
    if oldest < MAX_SPOOLED:
        return Look("spools", f"events wait on {HOST}: {text}")
    problem = seen(
        ProblemKind.SPOOLS,
        HOST,
        since=_now() - timedelta(seconds=oldest),
        count=len(waiting),
        title=f"Events wait on {HOST}",
        rest=f": {text}.",
        cure="once the database answers, any process of this host that uses the log replays "
        "them within 10 s: start a worker here, as the same user",
    )
    return Look("spools", "", (problem,))


def _place_of(core: Spooling) -> Look:
    """Check whether the spool is on storage that survives a reboot."""
    folder = core.spool.folder
    kind = file_system_of(folder)
    well = f"no events wait on {HOST} to be replayed"
    if kind in PASSING and core.writer.policy == "spool" and not _is_passing(core.database):
        problem = seen(
            ProblemKind.SETTINGS,
            "spool",
            since=_now(),
            count=1,
            title="The spool may not last",
            rest=f": {folder} is on {kind}, which {PASSING[kind]}: events kept there during "
            "an outage are lost with it.",
            cure="mount a volume there, or name a folder on one by JobLog(spool=...); or set "
            'on_outage="block", so that nothing is acknowledged before it is committed',
        )
        return Look("spools", well, (problem,))
    return Look("spools", well)


def _is_passing(database: Database) -> bool:
    """Return whether the log's own database file does not survive either."""
    file = dialect_of(database).file_of(database)
    return file is not None and file_system_of(file.parent) in PASSING


def _now() -> datetime:
    return datetime.now(timezone.utc)
