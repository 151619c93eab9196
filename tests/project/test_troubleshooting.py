"""docs/troubleshooting.md names messages that the package really has."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"
#: The first cell of a row that is a message, or the first of several.
MESSAGES = sorted(
    {
        message
        for cell in re.findall(r"^\| (`.*?`(?:, `.*?`)*) \|", PAGE.read_text(), re.MULTILINE)
        for message in re.findall(r"`([^`]+)`", cell)
        if " " in message
    }
)


def text_of(node):
    """Return a text of the source with an ellipsis for each value; None if it is none."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) or "…" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return (text_of(node.left) or "…") + (text_of(node.right) or "…")
    return None


def texts():
    """Return all texts of the package."""
    found = (
        text_of(node)
        for path in sorted((ROOT / "dramatiq_joblog").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
    )
    return {" ".join(text.split()) for text in found if text}


def test_the_page_names_many():
    """The page is read as it is meant."""
    assert len(MESSAGES) > 90


def test_each_message_is_in_the_package():
    """A message of the page is one that the package has, word for word."""
    known = texts()
    missing = []
    for message in MESSAGES:
        first, *others = (part.strip() for part in message.split("…") if part.strip())
        pattern = re.compile(".*?".join(map(re.escape, (first, *others))))
        if not any(first in text and pattern.search(text) for text in known):
            missing.append(message)
    assert [] == missing
