"""The page while its package is upgraded: the process still serves the version it began with."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import dramatiq_joblog

PAGES = ("/", "/jobs", "/dead", "/types", "/locks", "/nope")
SCRIPT = f"""
import pathlib, re, sys
from starlette.testclient import TestClient
from dramatiq_joblog import JobLog
from dramatiq_joblog.web import dashboard

log = JobLog(sys.argv[1])
log.create_tables()
with TestClient(dashboard(log, authorize=lambda request: "all")) as page:
    style = re.search(r'href="([^"]+style[.]css)"', page.get("/workers").text)[1]
    before = page.get(style).text
    for kind in ("templates", "static"):
        for file in (pathlib.Path(sys.argv[2]) / "web" / kind).iterdir():
            file.write_text("{{{{ of another version")
    assert before == page.get(style).text
    print(*(page.get(path).status_code for path in {PAGES!r}))
log.close()
"""


@pytest.mark.full
def test_files_of_another_version(tmp_path):
    """Templates and style sheets that are replaced while a process runs do not reach its pages."""
    package = tmp_path / "dramatiq_joblog"
    shutil.copytree(Path(dramatiq_joblog.__file__).parent, package)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", SCRIPT, f"sqlite:///{tmp_path}/jobs.db", str(package)]

    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
    )

    assert ("200 200 200 200 200 404\n", 0) == (done.stdout, done.returncode), done.stderr
