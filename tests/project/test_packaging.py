"""The package: the wheel's contents, its metadata, and documented public names."""

from __future__ import annotations

import email
import importlib.metadata
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import dramatiq_joblog

ROOT = Path(__file__).parents[2]
PROJECT = (ROOT / "pyproject.toml").read_text()
VERSION = re.search(r'^version = "(.+)"$', PROJECT, re.MULTILINE)[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel once, from a copy, so that an older build cannot slip into it."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    without_caches = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "dramatiq_joblog", folder / "dramatiq_joblog", ignore=without_caches)
    build = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert build.returncode == 0, build.stdout + build.stderr
    (path,) = (folder / "dist").glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_the_version_is_the_installed_one():
    """The version in pyproject.toml is the one that is installed."""
    assert importlib.metadata.version("dramatiq-joblog") == VERSION


@pytest.mark.full
def test_the_wheel_has_all_of_the_package(wheel):
    """The wheel has every file of the package: modules, migrations, py.typed."""
    files = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "dramatiq_joblog").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }

    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}

    assert shipped == files
    assert "dramatiq_joblog/py.typed" in shipped
    assert "dramatiq_joblog/schema/migrations/0001_initial.py" in shipped


@pytest.mark.full
def test_the_wheel_tells_what_it_is_and_needs(wheel):
    """The metadata has the version, the licence's text and two dependencies without extras."""
    folder = f"dramatiq_joblog-{VERSION}.dist-info"
    metadata = email.message_from_bytes(wheel.read(f"{folder}/METADATA"))

    needed = [
        re.split(r"[^\w-]", requirement)[0]
        for requirement in metadata.get_all("Requires-Dist")
        if "extra ==" not in requirement
    ]
    assert metadata["Version"] == VERSION
    assert sorted(needed) == ["dramatiq", "peewee"]
    assert wheel.read(f"{folder}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()


def test_public_names_are_sorted_and_there():
    """The public names are sorted and unique, and each can be imported."""
    names = dramatiq_joblog.__all__

    assert names == sorted(set(names))
    assert [name for name in names if not hasattr(dramatiq_joblog, name)] == []


@pytest.mark.parametrize("name", dramatiq_joblog.__all__)
def test_a_public_name_is_documented(name):
    """Each public name has its own docstring, not a generated one."""
    text = getattr(dramatiq_joblog, name).__doc__

    assert text
    assert not text.startswith(("An enumeration.", f"{name}("))
