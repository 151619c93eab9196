"""The README's Python blocks run, one after the other, and show what they say."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import dramatiq
import pytest

README = Path(__file__).parents[2] / "README.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks():
    """Return each Python block with the number of its line in the README."""
    text = README.read_text()
    return [(text.count("\n", 0, m.start()) + 2, m.group(1)) for m in BLOCK.finditer(text)]


def run_examples(block, line, namespace):
    """Run a block of ``>>>`` examples as a doctest."""
    examples = doctest.DocTestParser().get_doctest(block, namespace, "README.md", str(README), line)
    # The block's own names stay for the next one.
    examples.globs = namespace
    out = []
    runner = doctest.DocTestRunner()
    runner.run(examples, out=out.append, clear_globs=False)
    if runner.failures:
        pytest.fail("".join(out), pytrace=False)


def test_every_block_runs(tmp_path, monkeypatch, redis_url, worker, eventually):
    """The blocks run in order in an empty folder; a worker takes what they send to Redis."""
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "readme"}
    found = blocks()
    assert len(found) >= 8
    started = False
    for line, block in found:
        if block.startswith(">>>"):
            if not started:
                broker = dramatiq.get_broker()
                broker.emit_after("process_boot")
                with worker(broker):
                    joblog = namespace["joblog"]
                    eventually(joblog.jobs.in_state("finished", "dead").offset(1).exists)
                started = True
            run_examples(block, line, namespace)
        else:
            code = block.replace("RedisBroker()", f"RedisBroker(url={redis_url!r})")
            exec(compile("\n" * (line - 1) + code, str(README), "exec"), namespace)
    for name in ("joblog", "checked", "shop"):
        namespace[name].close()
    broker.close()
    broker.client.connection_pool.disconnect()


def test_local_links_lead_somewhere():
    """A link to a file or a heading of the project has its target."""
    text = README.read_text()
    headings = {
        re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in headings
        elif not target.startswith("http"):
            assert (README.parent / target).exists()
