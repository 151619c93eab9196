"""docs/troubleshooting.md has exactly the messages of the package."""

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
    """The page is parsed correctly."""
    assert len(MESSAGES) > 90


def test_each_message_is_in_the_package():
    """Each message of the page is in the package, word for word."""
    known = texts()
    missing = []
    for message in MESSAGES:
        first, *others = (part.strip() for part in message.split("…") if part.strip())
        pattern = re.compile(".*?".join(map(re.escape, (first, *others))))
        if not any(first in text and pattern.search(text) for text in known):
            missing.append(message)
    assert [] == missing


#: Errors of a search and of the command line name their own cure, as the page says.
ELSEWHERE = {"Refusal", "SearchError"}
#: What a message of the page ends with, what is caught here, and what has no words of its own.
NOT_SHOWN = {
    "… cannot be used: …",
    "… has …",
    "… has …: …",
    "… is not a key",
    "…=… is not a number of its column",
    "it ended with …",
    "it holds itself, or is too deep",
    "of a query",
    "rows of … were inserted by others at every try",
    "the condition has parameters: …",
}


def met():
    """Yield each message that is raised, or logged as a warning or worse, with its location."""
    for path in sorted((ROOT / "dramatiq_joblog").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            call = node.exc if isinstance(node, ast.Raise) else node
            if not isinstance(call, ast.Call) or not call.args:
                continue
            name = ast.unparse(call.func).rpartition(".")[2]
            if isinstance(node, ast.Raise):
                wanted = name not in ELSEWHERE
            else:
                wanted = name in {"warning", "error", "critical", "exception"}
            text = text_of(call.args[0]) if wanted else None
            if text and " " in text:
                yield f"{path.name}:{node.lineno}", " ".join(text.split())


def pattern_of(message):
    """Return a message of the page in the form of the source."""
    parts = [part.strip() for part in re.split(r"…|%\.?\d*\w", message)]
    return re.compile(".*?".join(re.escape(part) for part in parts if part))


def test_each_message_that_can_be_met_is_on_the_page():
    """Every message that the package raises or logs as a warning is on the page."""
    page = [pattern_of(m) for m in re.findall(r"`([^`]+)`", PAGE.read_text()) if " " in m]
    found = dict(met())
    assert len(found) > 150
    missing = {
        place: text
        for place, text in found.items()
        if text not in NOT_SHOWN and not any(pattern.search(text) for pattern in page)
    }
    assert {} == missing
