"""The output of commands: for people on a terminal, for programs in a pipe."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from dramatiq_joblog.reading.display import escaped_json

from .style import QUIET, TITLE, line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

Row = TypeVar("Row")

_GAP = 2
#: The width of output that does not go to a terminal, such as log lines in a pipe.
_WIDTH = 100


@dataclass(frozen=True)
class Column(Generic[Row]):
    """A column of a table.

    Parameters:
      title: Its heading.
      show: Returns the value for people; a column that is empty in all rows is left out.
      value: Returns the value for programs; by default that for people.
      keep: If there is no room for all columns, those with the lowest number are left out first.
      least: The least cells that it needs; None if it is never cut.
      right: Whether it is aligned to the right, as numbers and times are.
      seen_only: Whether it is left out for programs.
    """

    title: str
    show: Callable[[Row], Text | str]
    value: Callable[[Row], Any] | None = None
    keep: int = 0
    least: int | None = None
    right: bool = False
    seen_only: bool = False


class Screen:
    """Standard output, in the form for a terminal or for a pipe.

    Parameters:
      console: The output.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, emoji=False, markup=False)
        #: Whether it is a terminal.
        self.live = self.console.is_terminal
        #: Cells of a line.
        self.width = self.console.width if self.live else _WIDTH

    def write(self, *parts: Text | str | tuple[str, str]) -> None:
        """Write a line, however long it is."""
        # A part may come from a job: Text does not interpret markup.
        text = Text.assemble(*parts)
        text.rstrip()
        self.console.print(text, soft_wrap=True)

    def remark(self, text: str) -> None:
        """Write a line about what is shown."""
        self.write((text, QUIET))

    def paragraph(self, text: Text, indent: int = 0) -> None:
        """Write a text; on a terminal it is wrapped at words."""
        if self.live:
            self.console.print(Padding(text, (0, 0, 0, indent)))
        else:
            self.write(" " * indent, text)

    def hanging(self, text: Text, indent: int) -> None:
        """Write a text; on a terminal it is wrapped at words, with a hanging indent."""
        if not self.live:
            self.write(text)
            return
        first = text.wrap(self.console, self.width)[0]
        head, tail = text.divide([len(first)])
        self.write(head)
        if tail:
            self.paragraph(Text(tail.plain.strip()), indent)

    def _indented(self, text: Text, indent: int) -> None:
        """Write a value after its name; on a terminal it is wrapped below itself."""
        if not self.live or cell_len(text.plain) <= self.width:
            self.write(text)
            return
        name, value = text.divide([indent])
        for number, part in enumerate(value.wrap(self.console, max(20, self.width - indent))):
            self.write(name if number == 0 else " " * indent, part)

    def fit(self, text: Text) -> None:
        """Write a line; on a terminal it is cut at the edge."""
        if self.live:
            text.truncate(self.width, overflow="ellipsis")
        self.console.print(text, soft_wrap=True)

    def json(self, document: Any) -> None:
        """Write a JSON document on one line; a list has a line for each element."""
        if isinstance(document, list) and document:
            text = "[" + ",\n ".join(_dump(element) for element in document) + "]"
        else:
            text = _dump(document)
        self.raw(text)

    def fields(self, values: Iterable[Any]) -> None:
        """Write values as one tab-separated line, for programs."""
        self.raw("\t".join(map(_field, values)))

    def raw(self, text: str) -> None:
        """Write a line unchanged."""
        self.console.file.write(text + "\n")

    def title(self, text: str, note: str = "") -> None:
        """Begin a section."""
        self.write()
        self.write((text, TITLE), (f"  {note}" if note else "", QUIET))

    def rule(self) -> None:
        """Draw a thin line, on a terminal."""
        if self.live:
            self.write(("─" * self.width, QUIET))

    def facts(self, pairs: Iterable[tuple[str, Text | str]]) -> None:
        """Write pairs of a name and a value, one on each line."""
        known = [(name, value) for name, value in pairs if value]
        width = max((len(name) for name, _ in known), default=0)
        for name, value in known:
            text = Text.assemble((f"{name:<{width}}", QUIET), "  ", value)
            self._indented(text, width + 2)

    def table(self, columns: Sequence[Column[Row]], rows: Sequence[Row]) -> None:
        """Write a table: aligned for people, tab-separated with all columns in a pipe."""
        if not self.live:
            for row in rows:
                self.raw(
                    "\t".join(_plain(column, row) for column in columns if not column.seen_only)
                )
            return
        if not rows:
            # No heading for an empty table.
            return
        cells = [[_text(column.show(row)) for row in rows] for column in columns]
        titles = [cell_len(column.title) for column in columns]
        natural = [max([t, *map(_cells, c)]) for t, c in zip(titles, cells, strict=True)]
        filled = [i for i, column in enumerate(cells) if any(map(_cells, column))]
        widths = _widths(columns, natural, filled, self.width)
        heading = [Text(column.title, QUIET) for column in columns]
        self._row(columns, heading, widths)
        total = sum(widths.values()) + _GAP * (len(widths) - 1)
        self.write(("─" * total, QUIET))
        for texts in zip(*cells, strict=True):
            self._row(columns, texts, widths)

    def _row(
        self, columns: Sequence[Column[Row]], cells: Sequence[Text], widths: dict[int, int]
    ) -> None:
        text = Text()
        for i, width in widths.items():
            cell = cells[i].copy()
            cell.truncate(width, overflow="ellipsis")
            cell.align("right" if columns[i].right else "left", width)
            text.append(" " * _GAP if text else "").append_text(cell)
        text.rstrip()
        self.console.print(text, soft_wrap=True)


def _widths(
    columns: Sequence[Column[Any]], natural: list[int], filled: list[int], width: int
) -> dict[int, int]:
    """Return the width of each column that is shown, by its number."""
    widths = {i: min(natural[i], columns[i].least or natural[i]) for i in filled}
    while sum(widths.values()) + _GAP * (len(widths) - 1) > width and len(widths) > 1:
        widths.pop(min(widths, key=lambda i: columns[i].keep))
    left = width - sum(widths.values()) - _GAP * (len(widths) - 1)
    cut = sorted((i for i in widths if widths[i] < natural[i]), key=lambda i: -columns[i].keep)
    while left > 0 and cut:
        # One cell each in turn, so that a long name leaves room for the reason after it.
        for i in cut[:left]:
            widths[i] += 1
        left -= len(cut)
        cut = [i for i in cut if widths[i] < natural[i]]
    return widths


def _cells(text: Text) -> int:
    return cell_len(text.plain)


def _text(shown: Text | str) -> Text:
    return shown if isinstance(shown, Text) else Text(line(shown))


def _plain(column: Column[Any], row: Any) -> str:
    value = column.show(row) if column.value is None else column.value(row)
    return _field(value.plain if isinstance(value, Text) else value)


def _field(value: Any) -> str:
    return "-" if value is None or value == "" else line(value)


def _dump(document: Any) -> str:
    return escaped_json(json.dumps(document, ensure_ascii=False, default=str))
