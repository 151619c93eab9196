"""Accessibility of the pages, checked by axe: with all possible content, and empty."""

from __future__ import annotations

from pathlib import Path

import axe_playwright_python
import crowded
import pytest
from pages import chromium, opened, served

from dramatiq_joblog import JobLog

AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text()
#: What axe looks for, with the rules that it leaves out unless they are named; or only colours.
RUN = """async (colours) => {
  // What a new size or theme changes stands after the next frame.
  await new Promise((then) => requestAnimationFrame(() => requestAnimationFrame(then)));
  const more = ["target-size", "label-content-name-mismatch", "p-as-heading", "td-has-header"];
  const rules = Object.fromEntries(more.map((name) => [name, { enabled: true }]));
  const options = colours ? { runOnly: ["color-contrast", "link-in-text-block"] } : { rules };
  const { violations } = await axe.run(document, { ...options, resultTypes: ["violations"] });
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
    """Return a function that serves a full log, or an empty one."""
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
    """Return a function that returns axe's violations for a URL, by theme and width.

    The page is loaded once.  A second theme differs from the first only in its colours.
    """

    def find(url, widths, themes):
        # The page's own policy would not let axe in.
        context = browser.new_context(
            viewport={"width": widths[0], "height": 900},
            color_scheme=themes[0],
            reduced_motion="reduce",
            bypass_csp=True,
        )
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.goto(url)
        page.evaluate(AXE)
        found = {}
        for theme in themes:
            page.emulate_media(color_scheme=theme)
            for width in widths:
                page.set_viewport_size({"width": width, "height": 900})
                if wrong := page.evaluate(RUN, theme != themes[0]):
                    found[theme, width] = wrong
        context.close()
        return found

    return find


@pytest.mark.full
def test_the_overview_on_a_phone(faults, address):
    """On the first page, on a phone in dark mode, axe finds nothing."""
    assert faults(address("/"), [390], ["dark"]) == {}


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", crowded.PAGES)
def test_every_page(faults, address, name):
    """On each page, in both themes and at each width, axe finds nothing."""
    assert faults(address(crowded.PAGES[name]), WIDTHS, THEMES) == {}


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", EMPTY)
def test_a_log_without_jobs(faults, address, path):
    """On the pages of a log that has no job yet, axe finds nothing."""
    assert faults(address(None) + path, (390, 1440, 2560), THEMES) == {}
