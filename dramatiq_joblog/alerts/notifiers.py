"""Notifiers: callables, or URLs of the library apprise, each call with a time limit."""

from __future__ import annotations

import importlib
import re
import threading
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from dramatiq_joblog.errors import ConfigurationError, JobLogError
from dramatiq_joblog.payload.functions import call_function, check_function
from dramatiq_joblog.payload.secret_texts import scrub

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from .notice import Notice

#: Milliseconds that a notifier may take; then it may continue, but nothing waits for it.
NOTIFY_WITHIN = 10_000
#: The parts of an error that reveal a webhook: an address, or its path.
_ADDRESS = re.compile(r"(\b[\w+.-]+://|\burl: )\S+")
#: Characters of an error that are stored.
_MAX_ERROR = 500


#: Who is notified: a callable, a URL of apprise, or several URLs.
Notify: TypeAlias = "Callable[[Notice], Any] | str | Sequence[str]"


class NotifyError(JobLogError):
    """Raised when a notice could not be sent."""


class Notifier(Protocol):
    """Sends a notice, and raises if that fails."""

    def __call__(self, notice: Notice, /) -> Any:
        """Send it."""


class Apprise:
    """Sends notices to the URLs of the library apprise.

    Parameters:
      urls: The destinations, such as ``slack://...`` or ``mailto://...``.
      what: The name of the option, for errors.

    Raises:
      ConfigurationError: If apprise is not installed, or does not understand a URL.
    """

    def __init__(self, urls: Iterable[str], what: str) -> None:
        try:
            # Any: an optional extra, without types that help.
            self._apprise: Any = importlib.import_module("apprise")
        except ModuleNotFoundError as e:
            raise ConfigurationError(
                f"{what} has URLs, for which apprise is needed: pip install "
                "'dramatiq-joblog[alerts]', or give a callable"
            ) from e
        self._to: Any = self._apprise.Apprise()
        for number, url in enumerate(urls, 1):
            # Not the URL itself: it is a secret.
            if not isinstance(url, str) or not self._to.add(url):
                raise ConfigurationError(
                    f"URL number {number} of {what} is not understood by apprise; see "
                    "https://appriseit.com for the URLs it knows, and whether an extra package "
                    "is needed"
                )

    def __call__(self, notice: Notice) -> None:
        """Send a notice to all of them.

        Raises:
          NotifyError: If one of them failed.
        """
        sent = self._to.notify(
            title=notice.title,
            body=notice.markdown,
            body_format=self._apprise.NotifyFormat.MARKDOWN,
            notify_type=self._kind(notice),
        )
        if not sent:
            raise NotifyError("apprise could not send it; the log of this process says more")

    def _kind(self, notice: Notice) -> Any:
        kinds = self._apprise.NotifyType
        known = {"resolved": kinds.SUCCESS, "test": kinds.INFO}
        return known.get(notice.event, kinds.FAILURE)


def notifier_of(notify: Any, what: str = "notify=") -> Notifier | None:
    """Return an object that sends notices; None if *notify* is None.

    Parameters:
      notify: A callable, a URL, or several URLs.
      what: The name of the option, for errors.

    Raises:
      ConfigurationError: If it is none of these, or cannot be called with a notice.
    """
    if notify is None:
        return None
    if callable(notify):
        check_function(what, notify, "a notice")
        found: Notifier = notify
        return found
    urls = [notify] if isinstance(notify, str) else notify
    if not isinstance(urls, (list, tuple)) or not urls:
        raise ConfigurationError(
            f"{what} is {type(notify).__name__}: give a callable that takes a notice, a URL of "
            "apprise, or a list of URLs"
        )
    if any(map(callable, urls)):
        raise ConfigurationError(
            f"{what} is a list with a callable in it: give one callable, which may call others, "
            "or a list of URLs"
        )
    return Apprise(urls, what)


class Bounded:
    """Calls notifiers with a time limit; one that hangs is not called again until it returns."""

    def __init__(self, within: int = NOTIFY_WITHIN) -> None:
        self._within = within
        self._hanging: dict[int, threading.Thread] = {}

    def call(self, notifier: Callable[[Notice], Any], notice: Notice) -> str | None:
        """Send a notice; return the error, or None."""
        hanging = self._hanging.get(id(notifier))
        if hanging is not None and hanging.is_alive():
            return "an earlier call of this notifier has not ended"
        errors: list[BaseException] = []
        thread = threading.Thread(
            target=_call, args=(notifier, notice, errors), name="dramatiq_joblog notifier"
        )
        # It must not prevent the process from ending.
        thread.daemon = True
        thread.start()
        thread.join(self._within / 1000)
        if thread.is_alive():
            self._hanging[id(notifier)] = thread
            return f"it took longer than {self._within} ms"
        self._hanging.pop(id(notifier), None)
        return said(errors[0]) if errors else None


def said(error: BaseException) -> str:
    """Return an error as a text without addresses of webhooks, which are secrets."""
    text = str(error).strip()
    if not isinstance(error, NotifyError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return scrub(_ADDRESS.sub(r"\1...", text))[:_MAX_ERROR]


def _call(notifier: Callable[[Notice], Any], notice: Notice, errors: list[BaseException]) -> None:
    try:
        call_function(notifier, notice)
    except BaseException as e:  # noqa: BLE001 - it is kept, and said
        errors.append(e)
