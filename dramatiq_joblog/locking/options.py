"""The options of actors that name keys, and what makes keys and limits of a job's arguments."""

from __future__ import annotations

import inspect
import operator
import string
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from dramatiq_joblog.errors import ConfigurationError
from dramatiq_joblog.payload.functions import is_async
from dramatiq_joblog.payload.parameters import parameters_of
from dramatiq_joblog.payload.values import MAX_INT

if TYPE_CHECKING:
    from collections.abc import Callable

#: Milliseconds that a section stays held after the last heartbeat of its holder.
DEFAULT_TTL = 60_000
#: Milliseconds that a unique key is held at most, so that a lost message does not block others
#: forever.
DEFAULT_UNIQUE_TTL = 24 * 3600 * 1000
#: The maximum of all durations here, in milliseconds: a hundred years.  Longer ones are mistakes,
#: with an end beyond the dates of databases.
LONGEST = 100 * 366 * 24 * 3600 * 1000

OnConflict: TypeAlias = Literal["skip", "wait", "retry", "fail"]
OnTimeout: TypeAlias = Literal["dead", "skip", "retry"]
Hold: TypeAlias = Literal["job", "run"]
Keep: TypeAlias = Literal["first", "last"]
Until: TypeAlias = Literal["started", "finished"]


@dataclass(frozen=True)
class Exclusive:
    """A critical section for an actor's jobs: at most *limit* jobs with the same key at once.

    Example:
      >>> Exclusive("finance:{user_id}", on_conflict="wait", wait_for=600_000).limit
      1

    Parameters:
      key: A format string over the actor's parameters, or a callable that receives the job's
        arguments.
      limit: How many jobs may hold the key at once; or a callable that receives the job arguments
        that it names, and is called at each attempt to enter.
      on_conflict: What happens to a job that finds the key held: ``"skip"`` skips it, ``"wait"``
        lets it wait until the key is free, ``"retry"`` retries it like a failure, ``"fail"``
        makes it dead.
      wait_for: Milliseconds to wait at most; None for as long as it takes.
      on_timeout: What happens to a job that waited too long: ``"dead"``, ``"skip"`` or
        ``"retry"``.
      ttl: Milliseconds for which the key stays held if its holder vanishes.  The lease is renewed
        while the holder is alive, so it does not limit how long a job may run.
      hold: How long a retried job holds the key: ``"job"`` keeps it between runs, ``"run"``
        releases it after each run.

    Raises:
      ConfigurationError: If a value is invalid.
    """

    key: str | Callable[..., str]
    limit: int | Callable[..., int] = 1
    on_conflict: OnConflict = "skip"
    wait_for: int | None = None
    on_timeout: OnTimeout = "dead"
    ttl: int = DEFAULT_TTL
    hold: Hold = "job"

    def __post_init__(self) -> None:
        _check_common(self)
        _check_whole("ttl", self.ttl, 100, LONGEST)
        _check_one_of("hold", self.hold, get_args(Hold))


@dataclass(frozen=True)
class Rate:
    """A limit on starts: at most *limit* jobs of one key start within any *per* milliseconds.

    It applies across all workers, by the database's clock.  Each run counts as a start, including
    retries and redeliveries.  A waiting job uses no thread and no retry.

    Example:
      >>> Rate("shopify:{shop}", 40, per=60_000).on_conflict
      'wait'

    Parameters:
      key: As for :class:`Exclusive`.
      limit: How many jobs may start; or a callable that receives the job arguments that it names,
        and is called at each attempt to start.
      per: The length of the sliding window, in milliseconds.
      on_conflict: What happens to a job that finds the rate used up, as for :class:`Exclusive`.
      wait_for: Milliseconds to wait at most; None for as long as it takes.
      on_timeout: What happens to a job that waited too long, as for :class:`Exclusive`.

    Raises:
      ConfigurationError: If a value is invalid.
    """

    key: str | Callable[..., str]
    limit: int | Callable[..., int]
    _: KW_ONLY
    per: int
    on_conflict: OnConflict = "wait"
    wait_for: int | None = None
    on_timeout: OnTimeout = "dead"

    def __post_init__(self) -> None:
        _check_common(self)
        _check_whole("per", self.per, 1, LONGEST)


@dataclass(frozen=True)
class Unique:
    """A key that only one message may hold at a time, from its ``send()`` on.

    Example:
      >>> Unique("import:{user_id}", until="started").ttl
      86400000

    Parameters:
      key: A format string over the actor's parameters, or a callable that receives the job's
        arguments.
      until: ``"started"`` or ``"finished"``, or None for the whole of *ttl*.
      ttl: Milliseconds after which the key is released in any case.
      keep: Which message to keep: ``"first"`` refuses a second one; ``"last"`` skips an older one
        that has not begun.

    Raises:
      ConfigurationError: If a value is invalid.
    """

    key: str | Callable[..., str]
    until: Until | None = "finished"
    ttl: int = DEFAULT_UNIQUE_TTL
    keep: Keep = "first"

    def __post_init__(self) -> None:
        _check_key(self.key)
        if self.until is not None:
            _check_one_of("until", self.until, get_args(Until))
        _check_one_of("keep", self.keep, get_args(Keep))
        _check_whole("ttl", self.ttl, 100, LONGEST)


Entry: TypeAlias = Exclusive | Rate


def key_maker(key: Any, function: Any, where: str) -> Callable[..., str]:
    """Return the function that makes a job's key from its arguments.

    Raises:
      ConfigurationError: If *key* names an unknown parameter.
    """
    if callable(key):
        if is_async(key):
            raise ConfigurationError(f"{where} has the key {key!r}: it must not be async")
        return lambda *args, **kwargs: _text_of_key(key(*args, **kwargs))
    if not isinstance(key, str) or not key:
        raise ConfigurationError(
            f"{where} has the key {key!r}: a format string or a callable is needed"
        )
    parameters = parameters_of(function)
    signature = parameters.signature
    try:
        fields = [name for _, name, _, _ in string.Formatter().parse(key) if name is not None]
    except ValueError as e:
        raise ConfigurationError(f"{where} has the key {key!r}, which is not a format: {e}") from e
    for name in fields:
        first = name.split(".")[0].split("[")[0]
        if not parameters.accepts(first):
            raise ConfigurationError(
                f"{where} has the key {key!r}, and {first!r} is not one of its parameters "
                f"({parameters}){parameters.cure}"
            )
    named = _namer(signature)
    return lambda *args, **kwargs: _text_of_key(key.format_map(named(args, kwargs)))


def limit_asker(limit: Any, function: Any, where: str) -> Callable[..., int]:
    """Return the function that computes a job's limit from its arguments.

    Raises:
      ConfigurationError: If *limit* needs an unknown parameter.  The function returned raises
      one if the limit is not an integer of at least 0, or if *limit* fails.
    """
    if not callable(limit):
        return lambda *_args, **_kwargs: limit
    try:
        wanted = inspect.signature(limit).parameters.values()
    except (TypeError, ValueError) as e:
        raise ConfigurationError(
            f"{where} has limit={limit!r}, which does not say its parameters ({e}); wrap it in a "
            "lambda that names some of the actor's"
        ) from e
    if is_async(limit):
        raise ConfigurationError(f"{where} has limit={limit!r}: it must not be async")
    parameters = parameters_of(function)
    takes_all = any(p.kind is p.VAR_KEYWORD for p in wanted)
    names = [p.name for p in wanted if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    for p in wanted:
        by_name = p.name in names and (p.default is not p.empty or parameters.accepts(p.name))
        if not by_name and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL):
            raise ConfigurationError(
                f"{where} has a limit that needs {p.name!r}, which is not one of its parameters "
                f"({parameters}){parameters.cure}"
            )

    def ask(*args: Any, **kwargs: Any) -> int:
        try:
            named = _named(parameters.signature, args, kwargs)
            given = named if takes_all else {n: named[n] for n in names if n in named}
            said = limit(**given)
            number = _whole(said, 0, MAX_INT)
        except Exception as e:
            raise ConfigurationError(
                f"{where}: its limit could not be determined: {type(e).__name__}: {e}"
            ) from e
        if number is None:
            raise ConfigurationError(
                f"{where}: its limit is {said!r}, and must be a whole number of at least 0 and at "
                f"most {MAX_INT}"
            )
        return number

    return ask


def _namer(signature: inspect.Signature) -> Callable[[Any, Any], dict[str, Any]]:
    """Return :func:`_named` for one signature, faster where all is given by position."""
    parameters = signature.parameters.values()
    names = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    is_plain = len(names) == len(parameters)

    def named(args: Any, kwargs: Any) -> dict[str, Any]:
        if is_plain and not kwargs and len(args) == len(names):
            return dict(zip(names, args, strict=True))
        return _named(signature, args, kwargs)

    return named


def _named(signature: inspect.Signature, args: Any, kwargs: Any) -> dict[str, Any]:
    """Return a job's arguments by name, including defaults."""
    bound = signature.bind_partial(*args, **kwargs)
    bound.apply_defaults()
    named = dict(bound.arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            named |= named.pop(name, {})
    return named


def _text_of_key(key: Any) -> str:
    """Return the text of a key; numbers are converted, and an empty key is refused."""
    text = str(key) if isinstance(key, (str, int)) and not isinstance(key, bool) else ""
    if not text:
        raise ValueError(f"a text that is not empty is needed, not {key!r}")
    return text


def _check_common(entry: Entry) -> None:
    _check_key(entry.key)
    if not callable(entry.limit):
        _check_whole("limit", entry.limit, 1, MAX_INT)
    _check_one_of("on_conflict", entry.on_conflict, get_args(OnConflict))
    _check_one_of("on_timeout", entry.on_timeout, get_args(OnTimeout))
    if entry.wait_for is not None:
        _check_whole("wait_for", entry.wait_for, 0, LONGEST)


def check_by_hand(key: Any, *, limit: Any, ttl: Any, wait: Any) -> None:
    """Refuse invalid values of a manual lock.

    Raises:
      ConfigurationError: If a value is invalid.
    """
    if not isinstance(key, str) or not key:
        raise ConfigurationError(f"the key {key!r} is not valid: give a text that is not empty")
    _check_whole("limit", limit, 1, MAX_INT)
    _check_whole("ttl", ttl, 100, LONGEST)
    if wait is not None:
        _check_whole("wait", wait, 0, LONGEST)


def _check_key(key: Any) -> None:
    if not callable(key) and (not isinstance(key, str) or not key):
        raise ConfigurationError(
            f"the key {key!r} is not valid: give a format string or a callable"
        )


def _check_one_of(name: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigurationError(f"{name}={value!r} is not known; use one of {known}")


def _check_whole(name: str, value: Any, least: int, most: int) -> None:
    if _whole(value, least, most) is None or type(value) is not int:
        raise ConfigurationError(
            f"{name}={value!r} must be a whole number of at least {least} and at most {most}"
        )


def _whole(value: Any, least: int, most: int) -> int | None:
    """Return an integer of any library's type as an int; None if it is invalid or out of range."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        return None
    number = operator.index(value)
    return number if least <= number <= most else None
