"""Checks the rules and sends notices, in one process at a time."""

from __future__ import annotations

import hashlib
import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dramatiq.logging import get_logger

from dramatiq_joblog.database.checkout import checked_out
from dramatiq_joblog.database.limited_log import LimitedLog
from dramatiq_joblog.database.timeouts import bounded, cut_after
from dramatiq_joblog.errors import ConfigurationError, DatabaseAwayError, JobLogError
from dramatiq_joblog.locking.turn import Turn
from dramatiq_joblog.payload.values import host_now
from dramatiq_joblog.schema.fields import instant_of

from .ledger import Ledger, key_of, notice_of
from .notice import Notice
from .notifiers import Bounded, notifier_of
from .rules import check_rules

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from dramatiq_joblog.locking.locks import Locks
    from dramatiq_joblog.schema.models import AlertState
    from dramatiq_joblog.statistics.watermarks import Marks

    from .notifiers import Notifier
    from .rules import Asked, Rule, Sight

#: Milliseconds between two checks of the rules, by default.
DEFAULT_EVERY = 15_000
#: The least milliseconds between two checks.
LEAST_EVERY = 1_000
#: Milliseconds that a turn lasts unless it is renewed; then another process may take over.
TURN = 30_000
#: Milliseconds for the database to answer one rule, and all rules.
RULE_WITHIN, ROUND_WITHIN = 5_000, 60_000
#: The prefix of the marks of the last checks, one for each set of rules: services that share a log
#: may each have their own rules, and so may two versions of a service while it is deployed.
LOOKED = "alerts looked at "
#: Milliseconds after which the state of a rule that no process checks is deleted.
FORGET_AFTER = 86_400_000
_KEY = "alerts"


@dataclass(frozen=True)
class AlertSettings:
    """What is checked, how often, and who is notified."""

    #: The rules.
    rules: Iterable[Any] = ()
    #: Who is notified by default.
    notify: Any = None
    #: Milliseconds between two checks of the rules.
    every: int = DEFAULT_EVERY
    #: The address of the dashboard.
    page: str | None = None


class Alerting:
    """The alerts of one log.

    Parameters:
      asked: The log.
      locks: The locks by which a process takes its turn.
      marks: The table that stores the time of the last check.
      settings: The rules and notifiers.

    Raises:
      ConfigurationError: If a rule or a notifier is invalid.
    """

    def __init__(self, asked: Asked, locks: Locks, marks: Marks, settings: AlertSettings) -> None:
        self._asked = asked
        self._locks = locks
        self._marks = marks
        self._database: Any = asked.tables.database
        self.rules = check_rules(settings.rules, asked.tables.job)
        every = settings.every
        if isinstance(every, bool) or not isinstance(every, int) or every < LEAST_EVERY:
            raise ConfigurationError(
                f"alerts_every={every!r} must be a whole number of milliseconds, at least "
                f"{LEAST_EVERY:,}"
            )
        self.every = every
        self._page = _checked_page(settings.page)
        everybody = notifier_of(settings.notify)
        #: The notifier of each rule, by the rule's name.
        self._to: dict[str, Notifier | None] = {
            rule.name: everybody
            if rule.to is None
            else notifier_of(rule.to, f"to= of the alert {rule.name!r}")
            for rule in self.rules
        }
        self._everybody = everybody
        #: The rules, by the keys of their alerts.
        self._by_key = {key_of(key): rule for rule in self.rules for key in rule.keys}
        digest = hashlib.sha256("\n".join(sorted(self._by_key)).encode()).hexdigest()
        self._looked = f"{LOOKED}{digest[:16]}"
        self._ledger = Ledger(asked.tables.alert)
        self._bounded = Bounded()
        self._logger = get_logger(__name__, type(self))
        self._limited = LimitedLog(self._logger)
        self._turn = Turn(locks, _KEY, lasts=TURN)
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()

    # Called by the log's background tasks

    def look(self) -> None:
        """Begin a round if one is due; called on the writer's thread, with its connection."""
        if not self.rules or (self._thread is not None and self._thread.is_alive()):
            return
        if not self._is_due(self._locks.now()):
            return
        self._stopped.clear()
        self._thread = threading.Thread(
            target=self._round, name="dramatiq_joblog alerts", daemon=True
        )
        self._thread.start()

    def stop(self, timeout: float = 15.0) -> None:
        """End the current round, within *timeout* seconds."""
        self._stopped.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def round(self) -> bool:
        """Check the rules and send due notices; return False if another process does."""
        self._stopped.clear()
        return self._round()

    def _round(self) -> bool:
        try:
            with checked_out(self._database), self._turn.take() as renew:
                now = self._locks.now()
                if renew is None or not self._is_due(now):
                    return False
                self._marks.put(self._looked, now)
                with cut_after(self._database, ROUND_WITHIN):
                    self._look_at_rules(now, renew)
                self._send_due(renew)
        except DatabaseAwayError as e:
            text = "The job log's alerts are postponed: %s"
            self._limited.log(logging.WARNING, "postponed", text, str(e).strip())
            return False
        except Exception:  # noqa: BLE001 - it is logged
            text = "The job log's alerts failed."
            self._limited.log(logging.CRITICAL, "failed", text, exc_info=True)
            return False
        return True

    def test(self) -> dict[str, str | None]:
        """Send a test notice to every notifier; return the error, or None, by rule."""
        now = instant_of(host_now())
        results: dict[str, str | None] = {}
        by_target: dict[int, str | None] = {}
        to = {"notify=": self._everybody} | {
            rule.name: self._to[rule.name] for rule in self.rules if rule.to is not None
        }
        for name, notifier in to.items():
            if notifier is None:
                continue
            if id(notifier) not in by_target:
                text = "This is a test: notices of the job log arrive."
                notice = Notice(name, "test", text, 0, now, page=self._page)
                by_target[id(notifier)] = self._bounded.call(notifier, notice)
            results[name] = by_target[id(notifier)]
        return results

    def _is_due(self, now: int) -> bool:
        looked = self._marks.get(self._looked)
        # Rather a little early than late; at once if the clock went back.
        return looked is None or now - looked >= self.every - _EARLY or looked > now

    def _look_at_rules(self, now: int, renew: Callable[[], bool]) -> None:
        rows, seen = self._ledger.rows(), set()
        for rule in self.rules:
            sights = self._look_at(rule, now, rows)
            if sights is None:
                seen |= {*map(key_of, rule.keys)}
                continue
            for sight in sights:
                key = key_of(sight.key)
                seen.add(key)
                self._ledger.note(sight, rows.get(key), now)
            if self._stopped.is_set() or not renew():
                return
        self._forget([row for key, row in rows.items() if key not in seen], now)

    def _look_at(self, rule: Rule, now: int, rows: dict[str, AlertState]) -> list[Sight] | None:
        """Return what a rule finds; None if it could not be checked."""
        row = rows.get(key_of(rule.name))
        first_seen = now if row is None else int(row.first_seen_at.timestamp() * 1000)
        try:
            with bounded(self._database, RULE_WITHIN):
                return rule.look(self._asked, now, first_seen)
        except JobLogError as e:
            text = "The alert %r could not be checked: %s"
            self._limited.log(logging.ERROR, rule.name, text, rule.name, e)
            return None

    def _forget(self, rows: list[AlertState], now: int) -> None:
        """Delete the state of rules that no process has checked for a day."""
        before = now - FORGET_AFTER
        self._ledger.forget([row for row in rows if _millis(row.seen_at) < before])
        self._marks.forget(LOOKED, before)

    def _send_due(self, renew: Callable[[], bool]) -> None:
        for row in self._ledger.due(self._locks.now()):
            rule = self._by_key.get(row.key)
            if self._stopped.is_set() or not renew():
                return
            if rule is not None:
                self._send(row, self._to[rule.name])

    def _send(self, row: AlertState, notifier: Notifier | None) -> None:
        if not self._ledger.begin_try(row, self._locks.now()):
            return
        notice = notice_of(row, self._page)
        level = logging.INFO if notice.event == "resolved" else logging.WARNING
        self._logger.log(level, "Alert %s: %s: %s", notice.event, notice.name, notice.summary)
        error = None if notifier is None else self._bounded.call(notifier, notice)
        if error is None:
            self._ledger.sent(row, self._locks.now())
        elif self._ledger.failed(row, self._locks.now(), error):
            self._logger.error("Gave up sending a notice of %r: %s", notice.name, error)
        else:
            self._logger.warning("A notice of %r could not be sent: %s", notice.name, error)


#: Milliseconds by which a check may come early.
_EARLY = 1_000


def _checked_page(page: Any) -> str | None:
    """Return the address of the dashboard.

    Raises:
      ConfigurationError: If it is not an address, so that the links of notices would not work.
    """
    if page is None:
        return None
    if not isinstance(page, str) or not page.startswith(("http://", "https://")):
        raise ConfigurationError(
            f"page_url={page!r} is not an address of a page: give one such as 'https://shop.example/joblog'"
        )
    return page


def _millis(instant: Any) -> int:
    return int(instant.timestamp() * 1000)
