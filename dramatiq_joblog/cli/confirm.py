"""Confirmation of an action: its effect with numbers, a question, and ``--yes``."""

from __future__ import annotations

import contextlib
import getpass
import socket
import sys
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from .app import Refusal
from .style import number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

yes_option: Callable[[Any], Any] = click.option(
    "--yes", "-y", is_flag=True, help="Do not ask for confirmation."
)


def confirm(what: str, *, yes: bool) -> None:
    """Show what will be done, and ask for confirmation, unless *yes*.

    Raises:
      Refusal: If it is not confirmed, or there is no terminal.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise Refusal(f"{what}: there is no terminal to ask on, so nothing was done; give --yes")
    click.echo(f"{what}.", err=True)
    if not click.confirm("Do it?", err=True):
        raise Refusal("nothing was done")


def myself() -> str:
    """Return the name for the audit log: ``user@host``."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError, ImportError):
        # A user id without a name, as in some containers.
        name = "unknown"
    return f"{name}@{socket.gethostname()}"


def many(count: int, what: str) -> str:
    """Return ``1 job`` or ``1 200 jobs``."""
    return f"{number(count)} {what}{'' if count == 1 else 's'}"


@contextlib.contextmanager
def progress(what: str, total: int | None = None) -> Iterator[Callable[[int, int | None], None]]:
    """Show the progress of *what* on standard error, if that is a terminal.

    Yields a function to be called with the number done, and the total.
    """
    console = Console(stderr=True, highlight=False)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[text]}"),
        TimeRemainingColumn(compact=True),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    ) as shown:
        task = shown.add_task(what, total=total, text="")

        def update(done: int, of: int | None = total) -> None:
            text = number(done) if of is None else f"{number(done)} of {number(of)}"
            shown.update(task, completed=done, total=of, text=text)

        yield update
