"""docs/troubleshooting.md has exactly the messages of the package."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

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


@pytest.mark.full
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
    "rows of … were inserted by others at every try",
    "the condition has parameters: …",
}


#: The place of the text among the arguments of what answers a request.
ANSWERS = {"PlainTextResponse": 0, "Problem": 0, "_away": 0, "_refusal": 1, "sorry": 2}


def said_by(call, path):
    """Return the argument that is the text of a log entry or of an answer; None without one."""
    name = ast.unparse(call.func).rpartition(".")[2]
    if name in {"warning", "error", "critical", "exception"}:
        return call.args[0]
    if name == "log":
        # After its level, and perhaps a name of what it is about.
        texts = [arg for arg in call.args[1:3] if isinstance(arg, ast.Name) or text_of(arg)]
        return texts[-1] if texts else None
    place = ANSWERS.get(name) if path.parent.name == "web" else None
    return call.args[place] if place is not None and place < len(call.args) else None


def met_in(function, path):
    """Yield each message of a function, with its line."""
    nodes = list(ast.walk(function))
    named = {}
    for node in nodes:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            named.setdefault(node.targets[0].id, []).append(node.value)
    for node in nodes:
        call = node.exc if isinstance(node, ast.Raise) else node
        if not isinstance(call, ast.Call) or not call.args:
            continue
        if isinstance(node, ast.Raise):
            is_here = ast.unparse(call.func).rpartition(".")[2] not in ELSEWHERE
            said = call.args[0] if is_here else None
        else:
            said = said_by(call, path)
        for value in named.get(said.id, ()) if isinstance(said, ast.Name) else [said]:
            text = text_of(value)
            if text and " " in text:
                yield node.lineno, " ".join(text.split())


def met():
    """Return the messages that are raised, logged or answered to a request, with their places."""
    return {
        (path.name, line, text)
        for path in sorted((ROOT / "dramatiq_joblog").rglob("*.py"))
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for line, text in met_in(function, path)
    }


def pattern_of(message):
    """Return a message of the page in the form of the source."""
    parts = [part.strip() for part in re.split(r"…|%\.?\d*\w", message)]
    return re.compile(".*?".join(re.escape(part) for part in parts if part))


@pytest.mark.full
def test_each_message_that_can_be_met_is_on_the_page():
    """Every message that the package raises, logs or answers a request with is on the page."""
    page = [pattern_of(m) for m in re.findall(r"`([^`]+)`", PAGE.read_text()) if " " in m]
    found = met()
    assert len(found) > 200
    missing = [
        place
        for place in sorted(found)
        if place[2] not in NOT_SHOWN and not any(pattern.search(place[2]) for pattern in page)
    ]
    assert [] == missing
