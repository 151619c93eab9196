"""``searches``: the searches that people saved under a name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .app import NOTHING, Refusal, Session, command
from .confirm import myself
from .filters import Words, text_of
from .style import age, line
from .table import Column

if TYPE_CHECKING:
    from dramatiq_joblog.schema.models import SavedSearch


@command(
    "searches",
    "Show saved searches; save or delete one.",
    examples=[
        ("searches", "all saved searches"),
        ('searches --save "dead imports" state:dead type:import', "save one, for everyone"),
        ('searches --delete "dead imports"', "delete one"),
    ],
)
@click.argument("words", nargs=-1, type=Words(), metavar="[WORD]...")
@click.option("--save", metavar="NAME", help="Save the WORDs under this name.")
@click.option("--delete", metavar="NAME", help="Delete the saved search of this name.")
def searches(
    session: Session, *, words: tuple[str, ...], save: str | None, delete: str | None
) -> None:
    """Show the saved searches; save one with --save and WORDs, delete one with --delete.

    Everyone who uses the log shares them, also in the dashboard. In a search, saved:NAME is short
    for the words.
    """
    joblog, screen = session.joblog, session.screen
    if save is not None and delete is not None:
        raise Refusal("use either --save or --delete")
    if words and save is None:
        raise Refusal("give the search a name with --save NAME")
    if save is not None:
        row = joblog.save_search(save, text_of(words, {}), who=myself())
        if session.json:
            screen.json(row.as_dict())
        else:
            screen.write(f"{line(row.name)} is saved: {line(row.words)}")
        return
    if delete is not None:
        if not joblog.delete_search(delete, who=myself()):
            raise Refusal(f"there is no saved search {delete!r}", NOTHING)
        if session.json:
            screen.json({"deleted": delete})
        else:
            screen.write(f"{line(delete)} is deleted.")
        return
    _show(session)


def _show(session: Session) -> None:
    now = session.joblog.now()
    columns: list[Column[SavedSearch]] = [
        Column("Search", lambda row: row.name, keep=9, least=12),
        Column("Words", lambda row: row.words, keep=8, least=16),
        Column("Who", lambda row: row.who, keep=6, least=8),
        Column(
            "Age", lambda row: age(row.at, now), lambda row: row.as_dict()["at"], keep=5, right=True
        ),
    ]
    session.show(list(session.joblog.searches), columns, nothing="no search is saved yet")
