"""Batches of events; an event that the database refuses does not affect the others."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from dramatiq.logging import get_logger

from dramatiq_joblog.errors import DatabaseAwayError

from .events import UNANSWERED, Started
from .repair import repairs, said

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .events import Answer, Answers, Event
    from .exclusive import Sections
    from .repair import Repair

_logger = get_logger(__name__)


class Batches:
    """Writes batches of events.

    Parameters:
      sections: The statements of the log.
      ask: Calls a function that uses the database; raises if the database is unavailable.
    """

    def __init__(self, sections: Sections, ask: Callable[[Callable[[], Any]], Any]) -> None:
        self._sections = sections
        self._transitions = sections.transitions
        self._ask = ask
        self._on_written: Callable[[Sequence[Event], Answers], None] | None = None
        #: The number of events that the database refused in every form.
        self.lost = 0

    def on_written(self, listener: Callable[[Sequence[Event], Answers], None]) -> None:
        """Call *listener* with committed events and their answers; it must not block."""
        self._on_written = listener

    def write(self, events: Sequence[Event]) -> dict[str, Answer]:
        """Write a batch; events that the database refuses are repaired or dropped.

        Returns:
          The answers to starts, by jid; a start without an answer may run.
        """
        try:
            answers: dict[str, Answer] = self._ask(lambda: self._sections.write(events))
        except DatabaseAwayError:
            raise
        except Exception as e:  # noqa: BLE001
            # One poisoned event must never fail the whole batch.
            if len(events) > 1:
                answers = {}
                for event in events:
                    answers |= self.write([event])
                return answers
            return self._repair(events[0], e)
        self._note_written(events, answers)
        return answers

    def _note_written(self, events: Sequence[Event], answers: Answers) -> None:
        if self._on_written is not None:
            self._on_written(events, answers)

    def _repair(self, event: Event, error: Exception) -> dict[str, Answer]:
        """Write a poisoned event without its optional columns, with a note on the row."""
        last = error
        for repair in repairs(event, self._transitions.own_defaults(), error):
            written = repair.as_written()
            try:
                write = functools.partial(self._sections.write, [written])
                answers: dict[str, Answer] = self._ask(write)
            except DatabaseAwayError:
                raise
            except Exception as e:  # noqa: BLE001
                # No error may stop the writer or affect other events.
                last = e
            else:
                self._note_written([event], answers)
                self._put_back(repair)
                _logger.warning("Job %s was logged in part: %s", event.jid, said(error))
                return answers
        return self._give_up(event, last)

    def _put_back(self, repair: Repair) -> None:
        """Store the columns of an event that the database accepts one by one."""
        refused: dict[str, Exception] = {}
        for name, value in repair.columns.items():
            fill = functools.partial(self._transitions.fill, repair.event, {name: value})
            try:
                self._ask(fill)
            except DatabaseAwayError:
                raise
            except Exception as e:  # noqa: BLE001
                # The row's note reports it.
                refused[name] = e
        if repair.columns:
            note = {"note": repair.note(refused)}
            self._ask(lambda: self._transitions.fill(repair.event, note))

    def _give_up(self, event: Event, error: Exception) -> dict[str, Answer]:
        self.lost += 1
        _logger.error("The job log could not write an event of job %s: %s", event.jid, said(error))
        needs_key = isinstance(event, Started) and event.is_begin
        return {event.jid: UNANSWERED} if needs_key else {}
