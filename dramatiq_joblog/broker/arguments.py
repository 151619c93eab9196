"""How a message's arguments and options are stored, and restored for a new run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dramatiq
from dramatiq.encoder import JSONEncoder
from dramatiq.logging import get_logger
from dramatiq.message import get_encoder

from dramatiq_joblog.errors import RequeueError
from dramatiq_joblog.payload.parameters import parameters_of
from dramatiq_joblog.payload.redaction import MIN_RECOGNISED, digest, texts_in
from dramatiq_joblog.payload.sanitize import LEFT_OUT, document, is_plain, message_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from inspect import Signature

    from dramatiq import Broker

    from dramatiq_joblog.payload.redaction import Redactor
    from dramatiq_joblog.payload.sanitize import Document
    from dramatiq_joblog.recording.log import Kept, Log

#: Options of a single run or delivery, and those with their own columns: a new run starts without
#: them.
_NOT_KEPT = frozenset(
    {
        "delay",
        "eta",
        "joblog_delivery",
        "joblog_malformed",
        "joblog_note",
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

_REDACTED = "its arguments are stored without their secrets"


@dataclass
class Sent:
    """The arguments and options of a message."""

    args: list[Any]
    kwargs: dict[str, Any]
    options: dict[str, Any]


class Arguments:
    """Stores arguments and options in the rows of one log.

    Parameters:
      joblog: The log.
    """

    def __init__(self, joblog: Log[Kept]) -> None:
        self._joblog = joblog
        self._actors: dict[Broker, _Actors] = {}

    def columns(self, broker: Broker, message: Any) -> tuple[dict[str, Any], str | None]:
        """Return the columns of a message's arguments and options, and a note for its row."""
        if not self._joblog.core.store_args:
            return {"withheld": "the log keeps no arguments (store_args=False)"}, None
        actors = self._of(broker)
        names = actors.positional(message.actor_name)
        options = _kept_options(message)
        sent = {"args": list(message.args), "kwargs": dict(message.kwargs), "options": options}
        if not options:
            del sent["options"]
        documents = _documents(sent, actors.redactor, names)
        if any(kept.redacted for kept in documents.values()):
            # A secret that is recognised by name in one place may appear without it in another.
            redactor = actors.redactor.recognising(self._secrets(broker, message))
            documents = _documents(sent, redactor, names)
        columns: dict[str, Any] = {name: kept.text for name, kept in documents.items()}
        reasons = (_why(kept, sent[name]) for name, kept in documents.items())
        withheld = next((reason for reason in reasons if reason), None)
        if withheld is not None:
            columns |= self._withheld(message, options, columns, withheld)
        return columns, documents["args"].note or documents["kwargs"].note

    def positional(self, broker: Broker, actor_name: str) -> tuple[str, ...]:
        """Return the names of an actor's positional parameters; none if it is not declared."""
        return self._of(broker).positional(actor_name)

    def redactor(
        self, broker: Broker, message: Any, columns: Mapping[str, Any] | None = None
    ) -> Redactor:
        """Return a redactor for everything that a message's job reports.

        It recognises the secrets among the message's own arguments and options in any text.

        Parameters:
          broker: Where the message's actor is declared.
          message: The message.
          columns: The columns of its arguments, if already known.
        """
        redactor = self._of(broker).redactor
        if columns is not None and columns.get("withheld") is None:
            return redactor
        try:
            return redactor.recognising(self._secrets(broker, message))
        except Exception as e:  # noqa: BLE001
            # An argument's code failed, or the message is malformed: its arguments are not stored.
            get_logger(__name__, type(self)).debug("Secrets of a message are not known: %s", e)
            return redactor

    def key(
        self, broker: Broker, message: Any, make: Callable[..., str], *, is_literal: bool = False
    ) -> str:
        """Return the key made from a message's arguments, with digests in place of secrets.

        Parameters:
          broker: Where the message's actor is declared.
          message: The message.
          make: Makes the key from the arguments.
          is_literal: Whether the key does not depend on the arguments.

        Raises:
          Exception: Whatever *make* raises.
        """
        key = make(*message.args, **message.kwargs)
        secrets = {text for each in self._secrets(broker, message) for text in texts_in(each)}
        found = [secret for secret in secrets if secret and secret in key]
        if found:
            actors = self._of(broker)
            names = actors.positional(message.actor_name)
            args = actors.redactor.disguised(list(message.args), names)
            kwargs = actors.redactor.disguised(dict(message.kwargs))
            try:
                # The key may contain the same characters by chance.
                key = make(*args, **kwargs)
            except Exception:  # noqa: BLE001
                # The user's callable may need the real value.
                return _digested(key, found)
            if is_literal:
                # The sender may have put a secret there.
                return _digested(key, [text for text in found if len(text) >= MIN_RECOGNISED])
        return key

    def _of(self, broker: Broker) -> _Actors:
        actors = self._actors.get(broker)
        if actors is None:
            actors = self._actors[broker] = _Actors(broker, self._joblog.core.redactor)
        return actors

    def _secrets(self, broker: Broker, message: Any) -> list[Any]:
        actors = self._of(broker)
        find = actors.redactor.secrets
        return [
            *find(list(message.args), actors.positional(message.actor_name)),
            *find(dict(message.kwargs)),
            *find(_kept_options(message)),
        ]

    def _withheld(
        self, message: Any, options: dict[str, Any], columns: dict[str, Any], why: str
    ) -> dict[str, Any]:
        """Encrypt what is not stored unchanged, or report how it could be stored."""
        if any(text.startswith(LEFT_OUT) for text in columns.values()):
            return {"withheld": why}
        if self._joblog.core.seal is None:
            return {"withheld": f"{why}; JobLog(seal_key=...) keeps them encrypted too"}
        try:
            # Encoded as for the broker: the encoder may support more than JSON.
            data = get_encoder().encode({**message.asdict(), "options": options})
        except Exception as e:  # noqa: BLE001
            # The user's encoder failed; the sender gets the error when it enqueues the message.
            return {"withheld": f"{why}, and could not be encoded: {message_of(e)}"[:255]}
        return {"withheld": why, "sealed": self._joblog.core.seal.close(data)}

    def restore(self, job: Any) -> Sent:
        """Return the arguments and options of a job's message.

        Raises:
          RequeueError: If they are not stored.
        """
        if job.withheld is None and job.args is not None:
            sent = Sent(job.args, job.kwargs, job.options or {})
            shapes = (sent.args, list), (sent.kwargs, dict), (sent.options, dict)
            if not all(isinstance(value, kind) for value, kind in shapes):
                raise RequeueError(job.jid, "its stored arguments cannot be read")
            return sent
        if job.sealed is None:
            raise RequeueError(job.jid, job.withheld or "its arguments could not be stored")
        if self._joblog.core.seal is None:
            raise RequeueError(
                job.jid,
                "its arguments are kept encrypted; give JobLog the seal_key that was used then",
            )
        data = self._joblog.core.seal.open(job.sealed)
        if data is None:
            raise RequeueError(
                job.jid, "its arguments are kept encrypted, and no key in seal_key opens them"
            )
        decoded = get_encoder().decode(data)
        return Sent(list(decoded["args"]), decoded["kwargs"], decoded["options"])


class _Actors:
    """The parameters of one broker's actors.

    Parameters:
      broker: The broker.
      redactor: The log's redactor.
    """

    def __init__(self, broker: Broker, redactor: Redactor) -> None:
        self._broker = broker
        #: The names of each actor's positional parameters, with the actor they were read from.
        self._names: dict[str, tuple[Any, tuple[str, ...]]] = {}
        #: The redactor that knows these parameters.
        self.redactor = redactor.knowing(self.positional)

    def positional(self, actor_name: str) -> tuple[str, ...]:
        """Return the names of an actor's positional parameters; none if it is not declared."""
        actor = self._broker.actors.get(actor_name) if isinstance(actor_name, str) else None
        if actor is None:
            return ()
        known, names = self._names.get(actor_name, (None, ()))
        if known is not actor:
            names = parameters_of(actor.fn).positional
            self._names[actor_name] = actor, names
        return names


def _digested(key: str, secrets: list[str]) -> str:
    for secret in sorted(secrets, key=len, reverse=True):
        key = key.replace(secret, digest(secret))
    return key


def _kept_options(message: Any) -> dict[str, Any]:
    return {name: value for name, value in message.options.items() if name not in _NOT_KEPT}


def _documents(
    sent: Mapping[str, Any], redactor: Redactor, names: Sequence[str]
) -> dict[str, Document]:
    return {
        name: document(value, redactor, names if name == "args" else ())
        for name, value in sent.items()
    }


def _why(kept: Document, sent: Any) -> str | None:
    """Return why a stored document differs from what was sent; None if it does not."""
    if kept.redacted:
        return _REDACTED
    # Other encoders may keep what JSON silently changes: tuples, keys that are numbers.
    if kept.note is None and type(get_encoder()) is not JSONEncoder and not is_plain(sent):
        return "arguments that JSON cannot hold are kept as JSON has them"
    return kept.note


def signature_of(actor_name: str, broker: Broker | None = None) -> Signature | None:
    """Return an actor's signature, if it is declared and names its positional arguments.

    Parameters:
      actor_name: The actor.
      broker: Where it is declared; by default the process's global broker, if any.
    """
    broker = dramatiq.broker.global_broker if broker is None else broker
    actor = None if broker is None else broker.actors.get(actor_name)
    if actor is None:
        return None
    parameters = parameters_of(actor.fn)
    return parameters.signature if parameters.known else None


def positional_names(broker: Broker | None = None) -> dict[str, tuple[str, ...]]:
    """Return the names of declared actors' positional arguments, by actor name.

    Actors for which they are unknown are left out.

    Parameters:
      broker: Where they are declared; by default the process's global broker, if any.
    """
    # Read the global variable: get_broker() could create a broker.
    broker = dramatiq.broker.global_broker if broker is None else broker
    if broker is None:
        return {}
    names = {}
    for name, actor in list(broker.actors.items()):
        parameters = parameters_of(actor.fn)
        if parameters.known and parameters.positional:
            names[name] = parameters.positional
    return names
