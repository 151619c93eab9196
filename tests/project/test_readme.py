"""The blocks of the README and of the pages that go on from it run; links lead somewhere."""

from __future__ import annotations

import doctest
import re
import shlex
from pathlib import Path

import dramatiq
import pytest

from dramatiq_joblog.cli.app import PROGRAM
from dramatiq_joblog.cli.main import program
from dramatiq_joblog.reading import search

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
#: Pages whose blocks go on from those of the README, in this order.
PAGES = [
    DOCS / f"{name}.md" for name in ("query", "columns", "fields", "oncall", "deploy", "security")
]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(path):
    """Return each Python block of a page with the number of its line."""
    text = path.read_text()
    return [(text.count("\n", 0, m.start()) + 2, m.group(1)) for m in BLOCK.finditer(text)]


def run_examples(path, block, line, namespace):
    """Run a block of ``>>>`` examples as a doctest."""
    parser = doctest.DocTestParser()
    examples = parser.get_doctest(block, namespace, path.name, str(path), line)
    # The block's own names stay for the next one.
    examples.globs = namespace
    out = []
    runner = doctest.DocTestRunner()
    runner.run(examples, out=out.append, clear_globs=False)
    if runner.failures:
        pytest.fail("".join(out), pytrace=False)


def test_every_block_runs(tmp_path, monkeypatch, redis_url, worker):
    """The blocks run in order in an empty folder; a worker takes what they send to Redis."""
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "readme"}
    started = False
    for path in (README, *PAGES):
        found = blocks(path)
        assert found, path
        for line, block in found:
            if block.startswith(">>>") and not started:
                # What its text says: make the tables, and start a worker.
                assert "--app jobs:joblog migrate`, and start a worker" in README.read_text()
                namespace["joblog"].create_tables()
                broker = dramatiq.get_broker()
                broker.emit_after("process_boot")
                with worker(broker):
                    run_examples(path, block, line, namespace)
                started = True
            elif block.startswith(">>>"):
                run_examples(path, block, line, namespace)
            else:
                code = block.replace("RedisBroker()", f"RedisBroker(url={redis_url!r})")
                exec(compile("\n" * (line - 1) + code, str(path), "exec"), namespace)
    for name in ("joblog", "checked", "shop", "tidy"):
        namespace[name].close()
    broker.close()
    broker.client.connection_pool.disconnect()


def test_the_first_page_begins_as_the_readme():
    """The site's first page shows the README's first example and its result, which are tried."""
    of_readme = [block for _, block in blocks(README)]
    setup, result = (block for _, block in blocks(DOCS / "index.md"))
    assert setup == of_readme[0]
    shown = "".join(block.rstrip("\n") + "\n" for block in of_readme if block.startswith(">>>"))
    assert result.split() == shown.split()


def test_the_readme_is_short():
    """The README has at most 200 lines."""
    assert len(README.read_text().splitlines()) <= 200


COMMANDS = [
    (str(path.relative_to(ROOT)), command)
    for path in (README, *sorted(DOCS.rglob("*.md")))
    for command in re.findall(r"^\$ .*?\b(dramatiq-joblog [^|].*)$", path.read_text(), re.MULTILINE)
]


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_a_command_is_understood(page, command):
    """Each command line that a page shows has known commands, options and words of a search."""
    words = shlex.split(re.split(r" [|>] |\)$", command, maxsplit=1)[0], comments=True)[1:]
    if not {"--help", "--version"}.isdisjoint(words):
        return
    at = next(i for i, word in enumerate(words) if word in program.commands)
    command = program.commands[words[at]]
    # Within the program's context, as click keeps the names of a command's --help.
    with (
        program.make_context(PROGRAM, words[:at]) as parent,
        command.make_context(words[at], words[at + 1 :], parent=parent) as context,
    ):
        search.parse(" ".join(context.params.get("words", ())))


def headings(path):
    """Return the anchors of a page's headings, as the site and repositories make them."""
    return {
        re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    }


@pytest.mark.parametrize(
    "path", [README, *sorted(DOCS.rglob("*.md"))], ids=lambda path: str(path.relative_to(ROOT))
)
def test_local_links_lead_somewhere(path):
    """A link to a file or a heading of the project has its target."""
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if target.startswith(("http:", "https:")):
            continue
        name, _, anchor = target.partition("#")
        page = path.parent / name if name else path
        assert page.exists(), target
        if anchor:
            assert anchor in headings(page), target
