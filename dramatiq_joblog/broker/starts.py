"""How runs begin: what must be known before, committed before, or refused."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dramatiq.middleware import SkipMessage

from dramatiq_joblog.errors import ConfigurationError
from dramatiq_joblog.payload.sanitize import text_of
from dramatiq_joblog.payload.values import host_now
from dramatiq_joblog.recording.current import LiveRun, running
from dramatiq_joblog.recording.events import Started
from dramatiq_joblog.recording.log_handler import capture

from .options import DUPLICATE, MALFORMED, SECTION, UNIQUE, WAITS, age_left, bare
from .refusals import PutBack, Refusals, count_as_done
from .trace import current_trace_id

if TYPE_CHECKING:
    from dramatiq import Broker, Message
    from dramatiq.broker import MessageProxy

    from dramatiq_joblog.locking.leases import Held
    from dramatiq_joblog.recording.events import Answer
    from dramatiq_joblog.recording.inbox import LateStart
    from dramatiq_joblog.recording.log import Log
    from dramatiq_joblog.recording.progress import Reports

    from .ahead import Ahead, StartAhead
    from .messages import Messages
    from .plan import Plan
    from .run import Run
    from .runs import Runs
    from .services import Services, Worked

#: Milliseconds for which a job is put back whose section was lost before it began.
_AT_ONCE = 250


class Starts:
    """Begins runs, each with a committed or a deferred start.

    Parameters:
      joblog: The log.
      messages: What is known of messages.
      runs: The runs of this process.
      services: What this process does for its workers.
      reports: The reports of the runs that have begun.
      ahead: The starts committed ahead.
      outcome_log: Whether skipped jobs are logged as well.
    """

    def __init__(
        self,
        joblog: Log[Worked],
        messages: Messages,
        runs: Runs,
        services: Services,
        reports: Reports,
        *,
        ahead: Ahead,
        outcome_log: bool,
    ) -> None:
        self._joblog = joblog
        self._messages = messages
        self._runs = runs
        self._services = services
        self._reports = reports
        self._ahead = ahead
        self._refusals = Refusals(
            runs, services, outcome_log=outcome_log, user_column=messages.rows.user_column
        )

    def begin(self, broker: Broker, message: MessageProxy, plan: Plan) -> None:
        """Begin the run of a message.

        Raises:
          SkipMessage: If it may not run now.
          JobLogError: If its run fails before it has begun.
        """
        inner = bare(message)
        options = inner.options
        age, has_waited = None, False
        if plan.row is None or plan.is_bound:
            has_waited, age = self._bind(broker, message, options, plan)
            if age is not None and age <= 0:
                # AgeLimit runs later and drops it: it must not be put back before.
                return
        run = self._runs.new(broker, message, plan)
        run.start_at(host_now())
        start = Started(
            run.row.copy(),
            max_interruptions=plan.max_interruptions,
            redelivered=bool(getattr(message, "redelivered", False)),
            rerun=plan.rerun,
            section=options.get(SECTION),
            comes_back_within=age,
            unique=options.get(UNIQUE),
        )
        unguarded = start.section is None and start.unique is None
        if plan.starts_soon and unguarded and not start.redelivered:
            late, lease = self._joblog.core.writer.put_soon(start), None
        else:
            late = None
            if start.section is not None:
                self._hear(start, inner.actor_name)
                if not has_waited:
                    self._line_up(broker, message, run, start)
            lease = self._let_in(broker, message, run, start)
        self._enter(inner, run, plan, lease, late)

    def go_on(self, broker: Broker, message: MessageProxy, ahead: StartAhead) -> bool:
        """Begin a run whose start was committed ahead.

        Returns:
          False if its section was not free, so that nothing was written.

        Raises:
          SkipMessage: If it may not run now.
          JobLogError: If the writer failed.
        """
        run = ahead.run
        self._runs.enter(run)
        run.start_at(host_now())
        if (trace_id := current_trace_id()) is not None:
            run.row["trace_id"] = trace_id
        answer = ahead.wait()
        if not answer.granted and ahead.section is not None:
            self._ahead.note_conflict(message.actor_name)
            return False
        lease = self._admit(broker, message, run, answer)
        self._enter(bare(message), run, ahead.plan, lease, None)
        self._ahead.begun(ahead)
        return True

    def _bind(
        self, broker: Broker, message: MessageProxy, options: dict[str, Any], plan: Plan
    ) -> tuple[bool, int | None]:
        """Work out the keys of a message, or refuse it.

        Returns:
          Whether the job has waited for a key; and the milliseconds until the message is too old,
          if that matters.
        """
        if DUPLICATE in options:
            # Another producer may have stored anything there.
            self._messages.bonds.fit(broker, message)
        if options.get(DUPLICATE) is not None:
            count_as_done(broker, message)
            raise SkipMessage(text_of(options[DUPLICATE]))
        has_waited = options.pop(WAITS, None) is not None
        if has_waited and (waker := self._services.waker) is not None:
            waker.began(message)
        # Its sender may not know of sections.
        self._messages.bonds.bind(broker, message, plan, begins=True)
        if MALFORMED in options:
            self._refusals.reject(broker, message, ConfigurationError(text_of(options[MALFORMED])))
        return has_waited, age_left(broker, message) if SECTION in options else None

    def _enter(
        self,
        message: Message[Any],
        run: Run,
        plan: Plan,
        lease: Held | None,
        late: LateStart | None,
    ) -> None:
        """Set the current job of this thread, and begin to track its reports."""
        self._runs.open(run)
        if plan.lines_level is not None:
            # An earlier job may have reconfigured logging.
            capture.attach()
        row = run.row
        live = LiveRun(
            run.message_id,
            message.actor_name,
            row.get("root_jid") or run.message_id,
            row,
            run.redactor,
            lease=lease,
            lines_level=plan.lines_level,
            start=late,
            on_question=self._ahead.note_question,
        )
        self._reports.begin(live)
        running.set(live)
        run.begin(late)

    def _hear(self, start: Started, actor: str) -> None:
        """Pass the results of callable limits to the thread that promotes waiters."""
        waker = self._services.waker
        if waker is not None:
            for need in start.needs:
                if need.is_asked:
                    waker.heard(need, actor)

    def _line_up(self, broker: Broker, message: MessageProxy, run: Run, start: Started) -> None:
        """Let a new job join the end of a long wait queue without waiting for an answer."""
        waker = self._services.waker
        if waker is None or not start.may_line_up or not waker.has_line(start.needs[0]):
            return
        if self._refusals.line_up(broker, message, run, start):
            receipt = self._joblog.core.writer.put(replace(start, lines_up=True))
            waker.lines_up(start.jid, receipt)
            raise PutBack(f"it waits: others wait for {start.needs[0].key!r} before it")

    def _let_in(
        self, broker: Broker, message: MessageProxy, run: Run, start: Started
    ) -> Held | None:
        """Commit a start, and return the run's leases, or refuse its message."""
        answer = self._joblog.core.writer.write(start)
        return self._admit(broker, message, run, answer, needs_key=start.is_begin)

    def _admit(
        self,
        broker: Broker,
        message: MessageProxy,
        run: Run,
        answer: Answer,
        *,
        needs_key: bool = False,
    ) -> Held | None:
        """Return the leases of a run whose start is committed, or refuse its message."""
        if not answer.granted:
            self._refusals.refuse(broker, message, run, answer, needs_key=needs_key)
        elif answer.lease is not None and answer.lease.lost:
            # The commit, or its reply, took longer than the lease: another job may hold the key.
            self._refusals.send_back(broker, message, _AT_ONCE)
            raise PutBack("it is put back: its section was lost before it began")
        return answer.lease
