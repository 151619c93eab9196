"""Uncontended first runs in a section, begun in one statement.

Most starts in a section are uncontended.  The statement locks the jobs' rows, acquires the keys and
writes the starts: one round trip, which is also the transaction.  Starts that it does not begin are
left to :class:`~.exclusive.Sections`.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from dramatiq_joblog.database.dialects.postgresql import as_json
from dramatiq_joblog.database.libpq import run_prepared
from dramatiq_joblog.database.upsert import is_step
from dramatiq_joblog.locking.admission import claim_of
from dramatiq_joblog.locking.leases import Held
from dramatiq_joblog.locking.needs import SECTION
from dramatiq_joblog.states import STARTABLE, DeadReason

from .events import Answer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dramatiq_joblog.database.upsert import Step
    from dramatiq_joblog.locking.locks import Locks

    from .events import Started
    from .transitions import Transitions

#: Whether a row is of a message that was enqueued and has never run.
_IS_PLAIN = f"""(state IN ({", ".join(f"'{state.value}'" for state in STARTABLE)})
    AND token IS NULL AND attempt = 1 AND waiting_since IS NULL
    AND dead_reason IS DISTINCT FROM '{DeadReason.CANCELLED.value}')"""


class AtOnce:
    """Begins runs in one statement, on databases that can write to several tables in one.

    Parameters:
      runs: The step that writes the rows of runs.
      job: The bound job model.
      locks: The statements on keys.
    """

    # Any: peewee's queries are untyped.
    def __init__(self, runs: Step, job: Any, locks: Locks) -> None:
        self._runs = runs
        self._job = job
        self._locks = locks
        #: The SQL for each form of the step that writes the rows.
        self._texts: dict[str, str] = {}

    def begin(self, events: Sequence[Started]) -> dict[str, Answer]:
        """Begin and commit those of *events* that this statement can begin.

        Returns:
          The answers to the starts that began, by jid.
        """
        wanted: dict[str, Started] = {}
        for event in events:
            if _is_first(event):
                # The statement can acquire each key only once.
                wanted.setdefault(event.needs[0].key, event)
        if not wanted:
            return {}
        claims = {e.jid: claim_of(e.needs[0], e.run) for e in wanted.values()}
        rows = [event.row for event in wanted.values()]
        keys = [
            {name: getattr(claim, name) for name in ("key", "owner", "token", "process", "ttl")}
            for claim in claims.values()
        ]
        writing, values = self._runs.step(rows, "WHERE given.jid IN (SELECT owner FROM taken)")
        began = time.monotonic()
        taken = run_prepared(self._runs.database, self._text(writing), (as_json(keys), values))
        answers: dict[str, Answer] = {}
        for each in taken:
            fence, is_begun, jid = each.split(" ", 2)
            lease = self._locks.leases.hold(claims[jid], int(fence), began)
            if is_begun == "1":
                answers[jid] = Answer(granted=True, lease=Held([lease]))
            else:
                # Another run has just inserted its row.
                self._locks.release(SECTION, lease.key, jid, lease.token)
        return answers

    def _text(self, writing: str) -> str:
        text = self._texts.get(writing)
        if text is None:
            text = self._texts[writing] = self._around(writing)
        return text

    def _around(self, writing: str) -> str:
        """Return the SQL of the statement whose last step is *writing*.

        Its plan may be cached while the tables are small.  Each row is therefore looked up
        separately, so that no plan scans a whole table.
        """
        undisputed = self._locks.waiters.undisputed('given."key"')
        may_take = f"{undisputed} AND given.owner NOT IN (SELECT jid FROM known WHERE NOT is_plain)"
        return f"""
            WITH wanted AS (
                SELECT * FROM json_to_recordset({self._runs.database.param}::json)
                    AS each ("key" text, owner text, token text, process text, ttl bigint)
            ), known AS (
                SELECT jid, is_plain FROM (SELECT owner FROM wanted ORDER BY owner) AS each,
                LATERAL (
                    SELECT jid, {_IS_PLAIN} AS is_plain FROM "{self._job._meta.table_name}"
                    WHERE jid = each.owner FOR UPDATE
                ) AS row
            ), taken AS ({self._locks.slots.step("wanted", may_take)}
            ), begun (name) AS ({writing})
            SELECT concat(fence, ' ', (owner IN (SELECT name FROM begun))::int, ' ', owner)
            FROM taken
        """


def at_once(transitions: Transitions) -> AtOnce | None:
    """Return an :class:`AtOnce`; None if the database has no such statement."""
    runs = transitions.runs
    return AtOnce(runs, transitions.job, transitions.locks) if is_step(runs) else None


def _is_first(event: Started) -> bool:
    """Return whether a start is its message's first, and needs exactly one exclusive section."""
    if len(event.needs) != 1 or event.unique is not None or event.lines_up:
        return False
    [need] = event.needs
    is_first = event.row["attempt"] == 1 and not (event.redelivered or event.replayed)
    return is_first and need.kind == SECTION and need.limit == 1
