"""The pages for everybody, as axe sees them: with all that there is to show, and with nothing."""

from __future__ import annotations

from pathlib import Path

import axe_playwright_python
import crowded
import pytest
from pages import chromium, opened, served

from dramatiq_joblog import JobLog

AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text()
#: What axe looks for, with the rules that it leaves out unless they are named.
RUN = """async () => {
  const more = ["target-size", "label-content-name-mismatch", "p-as-heading", "td-has-header"];
  const rules = Object.fromEntries(more.map((name) => [name, { enabled: true }]));
  const { violations } = await axe.run(document, { rules, resultTypes: ["violations"] });
  return violations.flatMap(({ id, nodes }) =>
    nodes.map((node) => `${id}: ${node.html.slice(0, 120)}: ${node.failureSummary}`));
}"""
WIDTHS, THEMES = (390, 1024, 1440, 2560), ("light", "dark")
#: What there is on a log that has no job yet.
EMPTY = (
    *("/", "/jobs", "/types", "/dead", "/queues", "/locks"),
    *("/workers", "/actions", "/alerts", "/compare"),
)


@pytest.fixture(scope="module")
def browser():
    """Return a headless Chromium."""
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Return a function that serves a log with all there is, or an empty one."""
    folder = tmp_path_factory.mktemp("axe")

    def log_of(name):
        log = JobLog(f"sqlite:///{folder}/{name}.db", spool=folder / "spool")
        log.create_tables()
        return log

    full, empty = log_of("full"), log_of("empty")
    jids = crowded.crowd(full)
    with served(opened(full)) as at_full, served(opened(empty)) as at_empty:
        yield lambda path: at_full + path.format(**jids) if path is not None else at_empty
    for log in (full, empty):
        log.close()


@pytest.fixture
def faults(browser):
    """Return a function that returns what axe finds wrong with an address."""

    def find(url, width, theme):
        # The page's own policy would not let axe in.
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=theme, bypass_csp=True
        )
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.goto(url)
        page.evaluate(AXE)
        found = page.evaluate(RUN)
        context.close()
        return found

    return find


def test_the_overview_on_a_phone(faults, address):
    """On the first page, as it is on a phone at night, axe finds nothing."""
    assert faults(address("/"), 390, "dark") == []


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", crowded.PAGES)
def test_every_page(faults, address, name):
    """On each page, in both themes and at each width, axe finds nothing."""
    for theme in THEMES:
        for width in WIDTHS:
            assert faults(address(crowded.PAGES[name]), width, theme) == [], (theme, width)


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", EMPTY)
def test_a_log_without_jobs(faults, address, path):
    """On the pages of a log that has no job yet, axe finds nothing."""
    for theme, width in zip(THEMES, (390, 1440), strict=True):
        assert faults(address(None) + path, width, theme) == [], (theme, width)
