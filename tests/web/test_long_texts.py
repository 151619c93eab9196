"""Pages with very long names and texts, UUIDs, URLs and right-to-left words fit."""

from __future__ import annotations

import crowded
import pytest
from pages import chromium, opened, served

from dramatiq_joblog import JobLog

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]

#: Widths of devices, and those at which the layout changes.
WIDTHS = (360, 700, 901, 1024, 1101, 1201, 1440, 2560)
#: What begins or ends outside the window, unless what it stands in can be scrolled or cuts it.
WIDER = """() => {
  const wide = document.documentElement.clientWidth;
  const cuts = (e) => e && e !== document.body &&
    (getComputedStyle(e).overflowX !== "visible" || cuts(e.parentElement));
  const range = document.createRange(), found = [];
  const over = document.documentElement.scrollWidth - innerWidth;
  if (over > 0) found.push(`the page scrolls sideways by ${over}`);
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !e.checkVisibility()) continue;
    if (e.closest(".vh, svg, .jump") || cuts(e)) continue;
    range.selectNodeContents(walker.currentNode);
    const { left, right } = range.getBoundingClientRect();
    if (left < -1 || right > wide + 1) found.push(`${e.tagName} ${e.className} ${e.innerText}`);
  }
  return found.slice(0, 5).map((text) => text.slice(0, 90));
}"""
#: What lies over something else in its row.
OVER = """() => [...document.querySelectorAll("td, th, dt, dd, .st")]
  .filter((e) => e.checkVisibility() && getComputedStyle(e).overflowX === "visible")
  .filter((e) => e.scrollWidth > e.clientWidth + 1 && e.clientWidth)
  .map((e) => `${e.tagName} ${e.className} ${e.innerText}`.slice(0, 90)).slice(0, 5)"""


def test_nothing_is_wider_than_the_window(tmp_path):
    """No page scrolls sideways, and no cell overlaps the next, whatever the texts."""
    log = JobLog(f"sqlite:///{tmp_path}/jobs.db", spool=tmp_path / "spool")
    log.create_tables()
    # More rows are of the same kinds.
    jids = crowded.crowd(log, many=42)
    faults = []
    with chromium() as browser, served(opened(log, environment="production")) as address:
        page = browser.new_context(has_touch=True).new_page()
        for name, path in crowded.PAGES.items():
            page.goto(address + path.format(**jids))
            for width in WIDTHS:
                page.set_viewport_size({"width": width, "height": 900})
                for what in (WIDER, OVER):
                    faults += [f"{name} at {width}: {line}" for line in page.evaluate(what)]
    log.close()
    assert not faults, "\n".join(faults)
