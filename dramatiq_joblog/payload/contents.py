"""How the contents of jobs are stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .encryption import Seal
    from .redaction import Redactor


@dataclass(frozen=True)
class Contents:
    """How arguments, and other values of jobs, are stored."""

    #: Removes secrets from stored values.
    redactor: Redactor
    #: Encrypts values that are not shown; None without encryption.
    seal: Seal | None = None
    #: Whether the arguments of jobs are stored.
    store_args: bool = True
