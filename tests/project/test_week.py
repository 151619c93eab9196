"""The demo of the site: a week of a small company, as static files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.full
def test_the_demo(tmp_path):
    """It shows the events of that week, needs no server, and leaves nothing else in the folder."""
    folder = tmp_path / "demo"
    subprocess.run(
        [sys.executable, "-m", "example_app.week", str(folder)],
        check=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )

    first = (folder / "index.html").read_text("utf-8")
    needs = re.search(r"(\d+) things? needs? attention", first)
    assert needs is not None
    assert needs[1] == "1"
    assert "KeyError is new in import_prices" in first
    assert "FeedUnavailable" in (folder / "dead.html").read_text("utf-8")
    assert "finance:11" in (folder / "locks.html").read_text("utf-8")
    assert "nightly_report" in (folder / "types.html").read_text("utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]
