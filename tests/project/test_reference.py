"""The reference has everything public."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest

from dramatiq_joblog import JobLog

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


#: What is not of this package, or has an entry of its own under another name.
KNOWN = {"Any", "Counter", "Database", "Iterator", "J", "M", "Message", "None", "Select", "T"}


def test_what_the_log_returns_has_an_entry():
    """Each class that a method of the log returns has an entry."""
    entries = {entry.rpartition(".")[2] for entry in ENTRIES} | KNOWN
    methods = {
        name: getattr(member, "fget", None) or getattr(member, "__func__", member)
        for name, member in vars(JobLog).items()
        if not name.startswith("_")
    }
    returned = {
        (name, word)
        for name, method in methods.items()
        for word in re.findall(r"\b[A-Z]\w*", str(method.__annotations__.get("return", "")))
    }

    assert len(returned) > 40
    assert [] == sorted(each for each in returned if each[1] not in entries)


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_entry_is_there(entry):
    """Each entry names something that exists and has a docstring."""
    module, _, name = entry.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except AttributeError:
        found = importlib.import_module(entry)
    assert inspect.getdoc(found)
