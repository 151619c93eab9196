"""Encrypted arguments."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from dramatiq_joblog.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

_MAKE_ONE = (
    'python -c "from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())"'
)


class Seal:
    """Encrypts with the first of its keys, and decrypts with any of them.

    Parameters:
      keys: A Fernet key, or several: to change it, put the new one before the old.

    Raises:
      ConfigurationError: If one of them is not a key, or ``cryptography`` is not installed.
    """

    def __init__(self, keys: str | bytes | Sequence[str | bytes]) -> None:
        try:
            # Any: an optional extra, so its types may be missing.
            fernet: Any = importlib.import_module("cryptography.fernet")
        except ImportError as e:
            raise ConfigurationError(
                "seal_key needs cryptography: pip install 'dramatiq-joblog[crypto]'"
            ) from e
        # Its value may be a key: it is not shown.
        if not isinstance(keys, Iterable):
            raise ConfigurationError(
                f"seal_key is {type(keys).__name__}: give a Fernet key, or several; make one: "
                f"{_MAKE_ONE}"
            )
        keys = [keys] if isinstance(keys, str | bytes) else list(keys)
        if not keys:
            raise ConfigurationError(f"seal_key={keys!r} has no key; make one: {_MAKE_ONE}")
        try:
            self._fernet = fernet.MultiFernet([fernet.Fernet(key) for key in keys])
        except (TypeError, ValueError) as e:
            # Its text may be a real key with a typo: it is not shown.
            raise ConfigurationError(
                f"seal_key is not a Fernet key ({e}); make one: {_MAKE_ONE}"
            ) from None
        self._refused: Any = fernet.InvalidToken

    def close(self, data: bytes) -> str:
        """Return *data*, encrypted, as text."""
        return str(self._fernet.encrypt(data).decode())

    def open(self, text: str) -> bytes | None:
        """Return the decrypted text, or None if none of the keys fits."""
        try:
            return bytes(self._fernet.decrypt(text.encode()))
        except self._refused:
            return None
