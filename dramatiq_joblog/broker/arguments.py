"""What is kept of a message's arguments and options, and how a new run gets them back."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from operator import is_
from typing import TYPE_CHECKING, Any

from dramatiq.encoder import JSONEncoder
from dramatiq.message import get_encoder

from dramatiq_joblog.errors import RequeueError
from dramatiq_joblog.payload.sanitize import LEFT_OUT, document, message_of

if TYPE_CHECKING:
    from dramatiq import Broker

    from dramatiq_joblog.joblog import JobLog
    from dramatiq_joblog.payload.sanitize import Document

#: Options of one run or of one delivery, or that have columns of their own: a new run starts
#: without them.
_NOT_KEPT = frozenset(
    {
        "delay",
        "eta",
        "joblog_parent",
        "joblog_replay_of",
        "joblog_root",
        "joblog_section",
        "joblog_unique",
        "redis_message_id",
        "requeue_timestamp",
        "retries",
        "traceback",
    }
)

_REDACTED = "its arguments are kept without what must not be shown"


@dataclass
class Sent:
    """What a message said."""

    args: list[Any]
    kwargs: dict[str, Any]
    options: dict[str, Any]


class Arguments:
    """Keeps arguments and options with the rows of one log.

    Parameters:
      joblog: The log.
    """

    def __init__(self, joblog: JobLog) -> None:
        self._joblog = joblog
        #: The names of each actor's positional parameters.
        self._names: dict[str, tuple[str, ...]] = {}

    def columns(self, broker: Broker, message: Any) -> tuple[dict[str, Any], str | None]:
        """Return the columns of a message's arguments and options, and a note for its row."""
        if not self._joblog.store_args:
            return {"withheld": "the log keeps no arguments (store_args=False)"}, None
        redactor = self._joblog.redactor
        args = document(list(message.args), redactor, self._parameters(broker, message.actor_name))
        kwargs = document(dict(message.kwargs), redactor)
        columns: dict[str, Any] = {"args": args.text, "kwargs": kwargs.text}
        withheld = _why(args, message.args) or _why(kwargs, message.kwargs)
        kept = {name: value for name, value in message.options.items() if name not in _NOT_KEPT}
        if kept:
            shown = self._redacted(broker, kept)
            options = document(shown, redactor)
            columns["options"] = options.text
            withheld = withheld or _why(options, shown) or (shown is not kept and _REDACTED) or None
        if withheld is not None:
            columns |= self._withheld(message, kept, columns, withheld)
        return columns, args.note or kwargs.note

    def _redacted(self, broker: Broker, options: dict[str, Any]) -> dict[str, Any]:
        """Return *options* without the secrets in the arguments of the messages that follow."""
        target = options.get("pipe_target")
        callbacks = options.get("group_completion_callbacks")
        changed: dict[str, Any] = {}
        if target is not None and (shown := self._shown(broker, target)) is not target:
            changed["pipe_target"] = shown
        if callbacks:
            each = [self._shown(broker, callback) for callback in callbacks]
            if not all(map(is_, each, callbacks)):
                changed["group_completion_callbacks"] = each
        return {**options, **changed} if changed else options

    def _shown(self, broker: Broker, target: dict[str, Any]) -> dict[str, Any]:
        names = self._parameters(broker, target["actor_name"])
        args = self._joblog.redactor.value(target["args"], names)
        options = self._redacted(broker, target["options"])
        if args is target["args"] and options is target["options"]:
            return target
        return {**target, "args": args, "options": options}

    def _parameters(self, broker: Broker, actor_name: str) -> tuple[str, ...]:
        names = self._names.get(actor_name)
        if names is None:
            actor = broker.actors.get(actor_name)
            if actor is None:
                return ()
            names = self._names[actor_name] = _positional(actor.fn)
        return names

    def _withheld(
        self, message: Any, options: dict[str, Any], columns: dict[str, Any], why: str
    ) -> dict[str, Any]:
        """Seal what is not kept as it was sent, or say what could be done about it."""
        if any(text.startswith(LEFT_OUT) for text in columns.values()):
            return {"withheld": why}
        if self._joblog.seal is None:
            return {"withheld": f"{why}; JobLog(seal_key=...) keeps them encrypted too"}
        try:
            # As on its way to the worker: the encoder knows what JSON may not.
            data = get_encoder().encode({**message.asdict(), "options": options})
        except Exception as e:  # noqa: BLE001
            # The user's own encoder: the sender learns of it from the broker.
            return {"withheld": f"{why}, and could not be encoded: {message_of(e)}"[:255]}
        return {"withheld": why, "sealed": self._joblog.seal.close(data)}

    def restore(self, job: Any) -> Sent:
        """Return what a job's message said.

        Raises:
          RequeueError: If that is not known.
        """
        if job.withheld is None and job.args is not None:
            return Sent(job.args, job.kwargs, job.options or {})
        if job.sealed is None:
            raise RequeueError(job.jid, job.withheld or "its arguments could not be stored")
        if self._joblog.seal is None:
            raise RequeueError(
                job.jid, "its arguments are kept encrypted; give JobLog the seal_key of that time"
            )
        data = self._joblog.seal.open(job.sealed)
        if data is None:
            raise RequeueError(
                job.jid, "its arguments are kept encrypted, and no key in seal_key opens them"
            )
        sent = get_encoder().decode(data)
        return Sent(list(sent["args"]), sent["kwargs"], sent["options"])


def _positional(function: Any) -> tuple[str, ...]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        # A function that is not Python's may not tell.
        return ()
    keyword = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)
    return tuple(p.name for p in parameters if p.kind not in keyword)


def _why(kept: Document, sent: Any) -> str | None:
    """Tell why a document is not what was sent; None if it is."""
    if kept.redacted:
        return _REDACTED
    # What JSON changes without a word, other encoders may not: tuples, keys that are numbers.
    if (
        kept.note is None
        and type(get_encoder()) is not JSONEncoder
        and json.loads(kept.text) != (list(sent) if isinstance(sent, tuple) else sent)
    ):
        return "arguments that JSON cannot hold are kept as JSON has them"
    return kept.note
