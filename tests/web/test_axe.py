"""Accessibility of the pages, checked by axe: with all possible content, and empty."""

from __future__ import annotations

from pathlib import Path

import axe_playwright_python
import crowded
import pytest
from pages import chromium, opened, served

from dramatiq_joblog import JobLog

AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text()
#: Runs axe with the rules that it leaves out unless they are named, too.
RUN = """async () => {
  // What a new size or theme changes stands after the next frame.
  await new Promise((then) => requestAnimationFrame(() => requestAnimationFrame(then)));
  const more = ["target-size", "label-content-name-mismatch", "p-as-heading", "td-has-header"];
  const rules = Object.fromEntries(more.map((name) => [name, { enabled: true }]));
  const { violations } = await axe.run(document, { rules, resultTypes: ["violations"] });
  return violations.flatMap(({ id, nodes }) =>
    nodes.map((node) => `${id}: ${node.html.slice(0, 120)}: ${node.failureSummary}`));
}"""
#: The looks that pages have in turn: both themes, one narrow and one wide.
LOOKS = (
    ((1440, "light"), (390, "dark")),
    ((390, "light"), (1440, "dark")),
    ((2560, "light"), (390, "dark")),
    ((390, "light"), (1024, "dark")),
)
#: What there is on a log that has no job yet.
EMPTY = (
    *("/", "/jobs", "/types", "/dead", "/queues", "/locks"),
    *("/workers", "/actions", "/alerts", "/compare"),
)


@pytest.fixture(scope="module")
def page():
    """Return a page in a headless Chromium, the same for all tests."""
    with chromium() as browser:
        # The page's own policy would not let axe in.
        context = browser.new_context(reduced_motion="reduce", bypass_csp=True)
        page = context.new_page()
        page.set_default_timeout(60_000)
        yield page


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Return a function that serves a full log, or an empty one."""
    folder = tmp_path_factory.mktemp("axe")

    def log_of(name):
        log = JobLog(f"sqlite:///{folder}/{name}.db", spool=folder / "spool")
        log.create_tables()
        return log

    full, empty = log_of("full"), log_of("empty")
    # More rows are of the same kinds, and axe looks at each element.
    jids = crowded.crowd(full, many=42)
    with served(opened(full)) as at_full, served(opened(empty)) as at_empty:
        yield lambda path: at_full + path.format(**jids) if path is not None else at_empty
    for log in (full, empty):
        log.close()


@pytest.fixture
def faults(page):
    """Return a function that returns axe's violations for a URL, by look."""

    def find(url, looks):
        found = {}
        for number, (width, theme) in enumerate(looks):
            page.emulate_media(color_scheme=theme)
            page.set_viewport_size({"width": width, "height": 900})
            if number == 0:
                page.goto(url)
                page.evaluate(AXE)
            if wrong := page.evaluate(RUN):
                found[width, theme] = wrong
        return found

    return find


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("number", "name"), [*enumerate(crowded.PAGES)], ids=[*crowded.PAGES])
def test_every_page(faults, address, number, name):
    """On each page, in both themes, narrow and wide, axe finds nothing."""
    assert faults(address(crowded.PAGES[name]), LOOKS[number % len(LOOKS)]) == {}


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("number", "path"), [*enumerate(EMPTY)], ids=EMPTY)
def test_a_log_without_jobs(faults, address, number, path):
    """On the pages of a log that has no job yet, axe finds nothing."""
    assert faults(address(None) + path, LOOKS[number % len(LOOKS)][:1]) == {}


@pytest.mark.full
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_dialog(page, address, theme):
    """In a dialog that asks before something is done, axe finds nothing."""
    page.emulate_media(color_scheme=theme)
    page.set_viewport_size({"width": 1440, "height": 900})
    page.goto(address("/jobs/{enqueued}"))
    page.evaluate(AXE)
    page.get_by_role("link", name="Cancel").click()
    page.locator("dialog#ask").get_by_role("button", name="Cancel it").wait_for()
    assert page.evaluate(RUN) == []
