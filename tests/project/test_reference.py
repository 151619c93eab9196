"""The reference has everything public."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest

REFERENCE = Path(__file__).parents[2] / "docs" / "reference.md"
ENTRIES = re.findall(r"^::: ([\w.]+)$", REFERENCE.read_text("utf-8"), re.MULTILINE)


@pytest.mark.parametrize("module", ["dramatiq_joblog", "dramatiq_joblog.web"])
def test_every_public_name_has_an_entry(module):
    """Each name that a module exports has an entry, or is an error, which share one."""
    names = {entry.rpartition(".")[2] for entry in ENTRIES}
    public = importlib.import_module(module)
    missing = [
        name
        for name in public.__all__
        if name not in names
        and getattr(inspect.getmodule(getattr(public, name)), "__name__", "")
        != "dramatiq_joblog.errors"
    ]
    assert missing == []


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_entry_is_there(entry):
    """Each entry names something that exists and has a docstring."""
    module, _, name = entry.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except AttributeError:
        found = importlib.import_module(entry)
    assert inspect.getdoc(found)
