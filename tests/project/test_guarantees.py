"""The page of guarantees names a test of the first tier for each of its lines."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "guarantees.md"
NAMED = re.compile(r"`(test_\w+\.py)::(\w+)`")
NAMES = set(NAMED.findall(PAGE.read_text()))
FILES = {file for file, _ in NAMES}


@pytest.fixture(scope="module")
def names(first_tier):
    """Return the names of the tests of the first tier, by file, of all that the page names."""
    missing = FILES - set(first_tier)
    return collect(missing) | first_tier if missing else first_tier


def collect(files):
    """Return the tests that the first tier collects in *files*."""
    paths = [path for file in sorted(files) for path in TESTS.rglob(file)]
    command = ["-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *paths]
    done = subprocess.run(
        [sys.executable, *command], cwd=TESTS.parent, capture_output=True, text=True, check=False
    )
    found = {}
    for file, name in re.findall(r"(test_\w+\.py)::(\w+)", done.stdout):
        found.setdefault(file, set()).add(name)
    return found


@pytest.mark.parametrize(("file", "name"), sorted(NAMES))
def test_a_named_test_is_in_the_first_tier(names, file, name):
    """A test that the page names is in the one file of that name, and ``make test`` runs it."""
    assert 1 == len(list(TESTS.rglob(file)))
    assert name in names[file]


def test_each_line_names_its_test():
    """Every line of the page's tables names at least one test."""
    page, _ = PAGE.read_text().split("## What is not guaranteed")
    rows = [line for line in page.splitlines() if line.startswith("|")]
    heads = {i for i, line in enumerate(rows) if set(line) <= set("|-")}
    lines = [r for i, r in enumerate(rows) if i not in heads and i + 1 not in heads]
    assert [] == [line for line in lines if not NAMED.search(line)]
    assert len(lines) > 25
