"""The page of guarantees names a test for each of its lines, and each of them exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "guarantees.md"
NAMED = re.compile(r"`(test_\w+\.py)::(\w+)`")


@pytest.mark.parametrize(("file", "name"), sorted(set(NAMED.findall(PAGE.read_text()))))
def test_a_named_test_exists(file, name):
    """A test that the page names is there, in the one file of that name."""
    [path] = TESTS.rglob(file)
    tree = ast.parse(path.read_text())
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_each_line_names_its_test():
    """Every line of the page's tables names at least one test."""
    page, _ = PAGE.read_text().split("## What is not promised")
    rows = [line for line in page.splitlines() if line.startswith("|")]
    heads = {i for i, line in enumerate(rows) if set(line) <= set("|-")}
    lines = [r for i, r in enumerate(rows) if i not in heads and i + 1 not in heads]
    assert [] == [line for line in lines if not NAMED.search(line)]
    assert len(lines) > 25
