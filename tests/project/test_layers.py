"""Imports go in one direction, and importing the package has no other effect."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "dramatiq_joblog"

#: Each line may import from the lines above it, and nothing else of the package.
LAYERS = (
    ("errors", "states"),
    ("payload",),
    ("database",),
    ("schema",),
    ("locking", "statistics"),
    ("recording",),
    ("admin", "broker"),
    ("asking", "reading"),
    ("alerts",),
    ("core",),
    ("joblog",),
    ("middleware",),
    ("__init__", "importing"),
    ("testing", "web"),
    ("cli",),
    ("django",),
    ("__main__",),
)

#: What may use all of the host; the rest takes only these from it.
BROKER_SIDE = {"broker", "core", "django", "joblog", "middleware", "testing"}
HOST_HELPERS = {"dramatiq.errors", "dramatiq.logging", "dramatiq.middleware.MiddlewareError"}

#: peewee's names for the kinds of databases: only the dialects look at these.
KINDS = ("SqliteDatabase", "PostgresqlDatabase", "MySQLDatabase")

#: What runs without any extra, and what only type checkers import, which bring it.
RUNTIME = {"dramatiq", "peewee", "playhouse"}
FOR_CHECKERS = {"typing_extensions"}

#: Runs the import that is named, and prints what else it did.
PROBE = """
import os, sys, threading
import dramatiq.brokers.stub, peewee, playhouse.db_url, playhouse.migrations, playhouse.pool
import difflib, hashlib, inspect, multiprocessing.util, queue, secrets, weakref

effects = []

def watch(event, arguments):
    mode = arguments[1] if event == "open" else None
    watched = ("sqlite3.connect", "socket.connect", "subprocess.Popen", "os.mkdir", "os.fork")
    if event in watched or (isinstance(mode, str) and set(mode) & set("wxa+")):
        effects.append(f"{event} {arguments}")

def connect(database, *args, **kwargs):
    effects.append(f"connects to {database.database}")

class Environment(type(os.environ)):
    def __getitem__(self, name):
        effects.append(f"reads {name}")
        return super().__getitem__(name)

sys.dont_write_bytecode = True
peewee.Database.connect = connect
threads = threading.active_count()
sys.addaudithook(watch)
os.environ.__class__ = Environment
__import__(sys.argv[1])
os.environ.__class__ = Environment.__base__
if threading.active_count() != threads:
    effects.append("starts a thread")
for effect in effects:
    print(effect)
"""

OFFENDER = """
import os, peewee, sqlite3, threading
peewee.SqliteDatabase("jobs.db").connect()
os.environ.get("HOME")
sqlite3.connect(os.devnull)
open(os.devnull, "w")
threading.Thread(target=threading.Event().wait, daemon=True).start()
"""


@functools.cache
def modules():
    """Return the layer's name, the path and the syntax tree of each module."""
    paths = sorted(PACKAGE.rglob("*.py"))
    return [
        (
            path.relative_to(PACKAGE).with_suffix("").parts[0],
            path,
            ast.parse(path.read_text()),
        )
        for path in paths
    ]


@functools.cache
def imports(tree):
    """Return what imports in a tree, and in each function of it."""
    return [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


def imported(path, tree):
    """Yield each imported name in full, with its node: ``dramatiq_joblog.states.State``."""
    package = path.relative_to(ROOT).parent.parts
    for node in imports(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        else:
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*above, *filter(None, [node.module])))
            yield from ((f"{module}.{alias.name}", node) for alias in node.names)


def layer_of(name):
    """Return the layer that an imported name of the package belongs to."""
    parts = name.split(".")
    known = {module for line in LAYERS for module in line}
    return parts[1] if parts[1] in known else "__init__"


def rank(layer):
    """Return the number of a layer's line."""
    return next(i for i, line in enumerate(LAYERS) if layer in line)


@pytest.mark.full
def test_each_module_has_its_layer():
    """Each module of the package is in the table."""
    known = {layer for line in LAYERS for layer in line}

    assert {layer for layer, _, _ in modules()} <= known


def test_imports_go_one_way():
    """A module imports only from lower layers, including types."""
    upward = [
        f"{path.name} imports {name}"
        for layer, path, tree in modules()
        for name, _ in imported(path, tree)
        if name.startswith("dramatiq_joblog.")
        and layer_of(name) != layer
        and rank(layer_of(name)) >= rank(layer)
    ]

    assert upward == []


@pytest.mark.full
def test_no_cycle_is_broken_by_a_late_import():
    """No function imports from the package."""
    late = [
        f"{path.name} imports {name} in {function.name}"
        for _, path, tree in modules()
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for name, _ in imported(path, function)
        if name.startswith("dramatiq_joblog.")
    ]

    assert late == []


def test_only_the_middleware_needs_the_broker_side():
    """Other modules import only errors and logging from Dramatiq."""
    broker_side = [
        f"{path.name} imports {name}"
        for layer, path, tree in modules()
        if layer not in BROKER_SIDE
        for name, _ in imported(path, tree)
        if name.split(".")[0] == "dramatiq" and not {name, name.rpartition(".")[0]} & HOST_HELPERS
    ]

    assert broker_side == []


@pytest.mark.full
def test_the_core_needs_only_what_is_installed_with_it():
    """Up to the public names only the standard library, dramatiq and peewee are imported."""
    others = [
        f"{path.name} imports {name}"
        for layer, path, tree in modules()
        if rank(layer) <= rank("__init__")
        for name, _ in imported(path, tree)
        if name.split(".")[0]
        not in RUNTIME | FOR_CHECKERS | {"dramatiq_joblog"} | sys.stdlib_module_names
    ]

    assert others == []


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("from .joblog import JobLog", "dramatiq_joblog.joblog.JobLog"),
        ("from . import JobLog", "dramatiq_joblog.JobLog"),
        ("import dramatiq.broker", "dramatiq.broker"),
    ],
)
def test_an_import_is_read_in_full(source, name):
    """Relative and absolute imports are read as full names."""
    assert [found for found, _ in imported(PACKAGE / "some.py", ast.parse(source))] == [name]


@pytest.mark.full
def test_importing_has_no_effect():
    """Importing the package reads no environment, opens nothing and starts nothing."""
    for module in ("dramatiq_joblog", "dramatiq_joblog.middleware"):
        assert _effects_of(module, ROOT) == []


@pytest.mark.full
def test_an_effect_of_importing_is_seen(tmp_path):
    """The probe detects a module that does all of these."""
    (tmp_path / "offender.py").write_text(OFFENDER)

    effects = _effects_of("offender", tmp_path)

    for effect in (
        "connects to jobs.db",
        "reads HOME",
        "sqlite3.connect",
        "open",
        "starts a thread",
    ):
        assert any(seen.startswith(effect) for seen in effects), effect


def _effects_of(module, folder):
    probe = subprocess.run(
        [sys.executable, "-c", PROBE, module],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return probe.stdout.split("\n")[:-1]


def test_the_dialects_alone_ask_what_kind_a_database_is():
    """Differences between databases are only in their dialects."""
    asking = {
        str(path.relative_to(PACKAGE).parent)
        for path in PACKAGE.rglob("*.py")
        if any(kind in path.read_text() for kind in KINDS)
    }
    assert {"database/dialects"} == asking
