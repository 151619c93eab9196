"""The dashboard in a real browser: a headless Chromium, a real server, real jobs."""

from __future__ import annotations

import re
import socket
import threading
from datetime import datetime, timezone

import dramatiq
import psycopg
import pytest
import uvicorn
from pages import chromium, opened
from playwright.sync_api import expect

from dramatiq_joblog import JobLog

pytestmark = pytest.mark.full

NOON = datetime(2026, 11, 3, 12, tzinfo=timezone.utc)


@pytest.fixture(scope="module")
def browser():
    """Return a headless Chromium; without one skip, or fail if CI is set."""
    with chromium() as found:
        yield found


@pytest.fixture
def serve():
    """Return a function that serves an application on a free port, and returns its URL."""
    running = []

    def start(app):
        listener = socket.create_server(("127.0.0.1", 0))
        settings = uvicorn.Config(app, log_level="critical", ws="none", lifespan="off")
        server = uvicorn.Server(settings)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        running.append((server, thread, listener))
        return f"http://localhost:{listener.getsockname()[1]}"

    yield start
    for server, thread, listener in running:
        server.should_exit = True
        thread.join(timeout=10)
        listener.close()


@pytest.fixture
def log(sqlite_database):
    """Return a log on SQLite."""
    log = JobLog(sqlite_database)
    yield log
    log.close()


@pytest.fixture
def shop(log, make_broker):
    """Return a broker with actors, and a function that sends and runs jobs of all kinds."""
    broker = make_broker(joblog=log)
    broken = threading.Event()
    broken.set()

    @dramatiq.actor(job_type="import", job_user="user", max_retries=1, min_backoff=1)
    def load(user):
        if user % 5 == 0 and broken.is_set():
            raise ConnectionError(f"feed of {user} is closed")

    @dramatiq.actor(job_type="mail", job_user="user")
    def mail(user):
        pass

    broker.mend = broken.clear
    broker.load, broker.mail = load, mail
    return broker


@pytest.fixture
def run(shop, worker, log):
    """Return a function that sends some jobs and runs them to their end."""

    def work(count=12):
        for user in range(1, count + 1):
            shop.load.send(user)
            shop.mail.send(user)
        with worker(shop):
            shop.join("default", timeout=20_000, fail_fast=False)
        log.core.writer.flush(timeout=10)

    return work


@pytest.fixture
def open_page(browser):
    """Return a function that opens a URL in a new window.

    The test fails if the page has an error, or requests anything from elsewhere.
    """
    contexts, faults = [], []

    def start(url, *, width=1280, height=900, theme="light", **kwargs):
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=theme, **kwargs
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on(
            "console",
            lambda m: faults.append(m.text) if "Content Security Policy" in m.text else None,
        )
        origin = re.match(r"https?://[^/]+", url)[0]
        page.on(
            "request",
            lambda r: None if r.url.startswith(origin) else faults.append(f"asked {r.url}"),
        )
        page.goto(url)
        return page

    yield start
    for context in contexts:
        context.close()
    assert faults == []


def test_new_jobs_and_changes_come_in_by_themselves(log, shop, worker, run, serve, open_page):
    """The list follows the log: a new job, and then its end, without a reload."""
    run(2)
    page = open_page(serve(opened(log, every=200)) + "/jobs")
    page.evaluate("window.kept = true")
    expect(page.locator("table.jobs tbody tr")).to_have_count(4)

    message = shop.mail.send(77)
    row = page.locator(f'tr[data-jid="{message.message_id}"]')
    expect(row.locator(".st-c")).to_have_text("Enqueued")
    with worker(shop):
        expect(row.locator(".st-c")).to_have_text("Finished")

    expect(page.locator("#tab-finished .n")).to_have_text("5")
    assert page.evaluate("window.kept") is True


def test_new_rows_wait_while_one_is_selected(log, shop, run, serve, open_page):
    """Rows do not move: new ones are counted, and shown by a key."""
    run(3)
    page = open_page(serve(opened(log, every=200)) + "/jobs")
    page.locator("table.jobs tbody input").first.check()
    shop.mail.send(78)
    expect(page.locator("#fresh")).to_have_text("1 new")
    expect(page.locator("table.jobs tbody tr")).to_have_count(6)

    page.keyboard.press("Escape")
    page.locator("h1").click()
    page.keyboard.press(".")

    expect(page.locator("table.jobs tbody tr")).to_have_count(7)
    expect(page.locator("#fresh")).to_be_hidden()


def test_it_pauses_by_hand_and_when_hidden(log, shop, run, serve, open_page):
    """A paused or hidden page makes no requests, and then catches up."""
    run(1)
    page = open_page(serve(opened(log, every=100)) + "/jobs")
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.keyboard.press("p")
    expect(page.locator("#live-word")).to_have_text("Paused")
    asked.clear()
    with page.expect_response(lambda r: "/complete" in r.url):
        # As long as another answer takes, no other question was asked.
        page.keyboard.press("/")
    assert [url for url in asked if "/complete" not in url and "/static" not in url] == []
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    with page.expect_response(lambda r: "/jobs" in r.url):
        page.keyboard.press("p")
    expect(page.locator("#live-word")).to_have_text("Live")

    hide = """(hidden) => {
      Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
      document.dispatchEvent(new Event("visibilitychange"));
    }"""
    page.evaluate(hide, True)
    page.evaluate(
        "() => { window.number = 0; const ask = fetch;"
        " window.fetch = (...all) => { window.number += 1; return ask(...all); }; }"
    )
    page.evaluate(
        "new Promise((done) => { let n = 0; const id = setInterval(() => {"
        "if (++n > 5) { clearInterval(id); done(); } }, 100); })"
    )
    assert page.evaluate("window.number") == 0
    with page.expect_response(lambda r: "/jobs" in r.url):
        page.evaluate(hide, False)


def test_it_says_when_the_server_is_gone(log, serve, open_page, run):
    """The last figures stay, and the page says that it is reconnecting."""
    run(1)
    page = open_page(serve(opened(log, every=100)) + "/jobs")
    page.route("**/jobs*", lambda route: route.abort())
    expect(page.locator("#live-word")).to_have_text("Reconnecting")
    expect(page.locator("table.jobs tbody tr")).to_have_count(2)

    page.unroute("**/jobs*")

    expect(page.locator("#live-word")).to_have_text("Live")


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_what_does_not_come_in_time_stays_as_it_was(joblog, database_url, serve, open_page):
    """While the database is slow, the last rows and figures stay under the banner."""
    joblog.Job.create(
        jid="a",
        actor="work",
        queue="default",
        state="enqueued",
        attempt=1,
        **dict.fromkeys(("enqueued_at", "created_at", "updated_at"), NOON),
    )
    page = open_page(serve(opened(joblog, every=200, timeout=1_000)) + "/jobs")
    row = page.locator("table.jobs tbody tr")
    expect(page.locator("#tab-enqueued .n")).to_have_text("1")
    with psycopg.connect(database_url) as other:
        other.execute("LOCK TABLE joblog_job IN ACCESS EXCLUSIVE MODE")
        expect(page.locator("#banners")).to_contain_text("took longer than 1 s for the jobs")
        expect(row).to_have_count(1)
        expect(row).not_to_have_class(re.compile("gone"))
        expect(page.locator("#tab-enqueued .n")).to_have_text("1")
        other.rollback()

    expect(page.locator("#banners")).to_be_empty()


def test_a_search_is_completed_and_its_words_are_chips(log, run, serve, open_page):
    """`/` focuses the search, words are completed by keys, and the URL can be shared."""
    run()
    page = open_page(serve(opened(log, every=60_000)) + "/workers")
    page.keyboard.press("/")
    page.wait_for_url("**/jobs?focus=1")
    search = page.locator(".find input:not([type=hidden])")
    expect(search).to_be_focused()
    page.keyboard.type("sta")
    expect(page.get_by_role("option").first).to_have_text(re.compile("^state:"))
    page.keyboard.press("Tab")
    page.keyboard.type("dea")
    expect(page.get_by_role("option").first).to_contain_text("2 jobs")
    expect(search).to_have_attribute("aria-expanded", "true")
    page.keyboard.press("ArrowDown")
    expect(search).to_have_attribute("aria-activedescendant", "option-0")
    page.keyboard.press("Enter")
    expect(page.locator(".q")).to_have_text("state:dead")
    page.keyboard.type("type:import")
    page.keyboard.press("Enter")

    page.wait_for_url("**/jobs?q=state%3Adead+type%3Aimport")
    expect(page.locator(".q")).to_have_count(2)
    expect(page.locator("table.jobs tbody tr")).to_have_count(2)
    page.get_by_role("button", name="Remove type:import").click()
    page.wait_for_url("**/jobs?q=state%3Adead")


def test_a_late_answer_keeps_the_chosen_word(log, run, serve, open_page):
    """The word that was chosen with the keys stays chosen when the answer comes after that."""
    run()
    page = open_page(serve(opened(log, every=60_000)) + "/jobs?focus=1")
    held = []
    page.keyboard.type("state:")
    expect(page.get_by_role("option", name="state:dead")).to_be_visible()

    def hold(route):
        held.append(route)

    page.route("**/*word=state%3Ad", hold)
    page.keyboard.type("d")
    expect(page.get_by_role("option")).to_have_count(2)
    page.keyboard.press("ArrowDown")
    chosen = page.get_by_role("option", selected=True)
    expect(chosen).to_have_count(1)
    word = chosen.inner_text().split()[0]
    with page.expect_response("**/*word=state%3Ad"):
        held[0].continue_()

    expect(page.get_by_role("option", selected=True)).to_contain_text(word)
    page.keyboard.press("Enter")
    expect(page.locator(".q")).to_have_text(word)


def test_a_dead_job_is_run_again_and_lives(log, shop, worker, run, serve, open_page):
    """From the list of dead jobs to a finished new job, with the mouse and a real worker."""
    run(5)
    shop.mend()
    page = open_page(serve(opened(log, every=200)) + "/jobs?q=state:dead")
    page.locator("table.jobs .type a").click()
    expect(page.locator("details.run")).to_have_count(2)
    expect(page.locator("details.run[open] .err").first).to_contain_text("feed of 5 is closed")
    old = page.url
    page.get_by_role("link", name="Run again").click()
    dialog = page.locator("dialog#ask")
    expect(dialog.get_by_role("heading")).to_have_text("Run import again?")
    dialog.get_by_role("button", name="Run again").click()
    page.wait_for_url(lambda url: url.split("?")[0] != old and "/jobs/" in url)
    expect(page.locator("#state")).to_contain_text("Enqueued")

    with worker(shop):
        expect(page.locator("#state")).to_contain_text("Finished")

    expect(page.locator("#history")).to_contain_text("runs")
    page.goto(old)
    expect(page.locator("#history")).to_contain_text("run again as")


def test_a_job_is_given_up(log, shop, worker, serve, open_page):
    """From its page, with a reason, while it is not running; then no worker runs it."""
    kept, given_up = (shop.mail.send(user).message_id for user in (1, 2))
    log.core.writer.flush(timeout=10)
    address = serve(opened(log, every=200))
    other = open_page(f"{address}/jobs/{kept}")
    page = open_page(f"{address}/jobs/{given_up}", theme="dark")
    page.get_by_role("link", name="Cancel").click()
    dialog = page.locator("dialog#ask")
    expect(dialog.get_by_role("heading")).to_have_text("Cancel mail?")
    page.keyboard.type("flushed")
    dialog.get_by_role("button", name="Cancel it").click()

    expect(page.locator("#banners")).to_contain_text("1 job is cancelled.")
    expect(page.locator("#state")).to_contain_text("Dead cancelled")
    expect(page.locator("#history")).to_contain_text("cancelled it, which was enqueued: flushed")
    expect(page.get_by_role("link", name="Cancel")).to_have_count(0)
    expect(other.get_by_role("link", name="Cancel")).to_be_visible()
    with worker(shop):
        expect(other.locator("#state")).to_contain_text("Finished")
        # What can be done follows the job without a reload.
        expect(other.get_by_role("link", name="Cancel")).to_have_count(0)
        shop.join("default", timeout=20_000, fail_fast=False)
    assert [given_up] == [message.message_id for message in shop.dead_letters]
    assert log.get(given_up).dead_reason == "cancelled"


def test_a_job_is_followed_to_its_end(log, shop, worker, serve, open_page):
    """A job's page follows it: its runs, error and end appear without a reload."""
    message = shop.load.send(5)
    log.core.writer.flush(timeout=10)
    page = open_page(f"{serve(opened(log, every=200))}/jobs/{message.message_id}")
    expect(page.locator("#state")).to_contain_text("Enqueued")
    expect(page.locator("#runs")).to_contain_text("It has not run yet.")

    with worker(shop):
        expect(page.locator("#state")).to_contain_text("Dead")

    expect(page.locator("#error")).to_contain_text("feed of 5 is closed")
    expect(page.locator("details.run")).to_have_count(2)
    expect(page.locator("#timeline")).to_contain_text("Run 2, dead")
    expect(page.locator("#runs")).not_to_contain_text("It has not run yet.")


def test_a_group_of_dead_is_dismissed_by_keys(log, run, serve, open_page):
    """j, x, d: a group is selected and dismissed with the keyboard, after a question."""
    run(10)
    page = open_page(serve(opened(log, every=60_000)) + "/dead")
    page.keyboard.press("j")
    expect(page.locator("tr.at")).to_have_count(1)
    page.keyboard.press("x")
    expect(page.locator("#bulk")).to_contain_text("2 jobs in 1 group")
    page.keyboard.press("d")
    dialog = page.locator("dialog#ask")
    expect(dialog.get_by_role("heading")).to_have_text("Dismiss 2 jobs?")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    assert log.jobs.dead().undismissed().count() == 2
    page.keyboard.press("d")
    expect(dialog.get_by_role("button", name="Dismiss 2")).to_be_focused()
    page.keyboard.press("Enter")

    expect(page.locator("#banners")).to_contain_text("2 jobs are dismissed.")
    assert log.jobs.dead().undismissed().count() == 0


def test_selected_jobs_are_run_again(log, shop, run, serve, open_page):
    """The selection bar asks with its number, and runs the jobs again."""
    run(10)
    page = open_page(serve(opened(log, every=60_000)) + "/jobs?q=state:dead")
    page.locator("#all-rows").check()
    expect(page.locator("#bulk")).to_contain_text("2 selected")
    page.locator("#bulk").get_by_role("button", name="Run again").click()
    dialog = page.locator("dialog#ask")
    dialog.get_by_role("button", name="Run 2 again").click()

    expect(page.locator("#banners")).to_contain_text("2 jobs run again.")
    assert log.jobs.enqueued().count() == 2
    page.locator("table.jobs tbody input").first.check()
    page.get_by_role("button", name="Select all 2 dead").click()
    expect(page.locator("#bulk")).to_contain_text("2 selected")
    page.keyboard.press("d")
    dialog.get_by_role("button", name="Dismiss 2").click()
    expect(page.locator("#banners")).to_contain_text("2 jobs are dismissed.")


def test_a_key_is_unlocked_with_a_reason(log, serve, open_page):
    """The question says that the holder is alive, focuses the reason, and unlocks the key."""
    with log.lock("finance:42"):
        page = open_page(serve(opened(log, every=200)) + "/locks")
        page.keyboard.press("j")
        page.keyboard.press("U")
        dialog = page.locator("dialog#ask")
        expect(dialog).to_contain_text("Its holder is alive")
        expect(dialog.get_by_label("Reason")).to_be_focused()
        page.keyboard.type("checked by hand")
        dialog.get_by_role("button", name="Unlock").click()
        expect(page.locator("#banners")).to_contain_text("The key is unlocked.")
        expect(page.locator("#locks")).to_contain_text("No section is held.")
    with log.lock("another"):
        # The page has updated itself, and what was done still stands there.
        expect(page.locator("#locks")).to_contain_text("another")
        expect(page.locator("#banners")).to_contain_text("The key is unlocked.", timeout=1)
    assert "checked by hand" in log.actions.get().detail


def test_every_key_is_on_the_sheet(log, run, serve, open_page):
    """`?` shows the keys; g and a letter open pages; j, Enter and u a job and back."""
    run(2)
    address = serve(opened(log, every=60_000))
    page = open_page(address)
    page.keyboard.press("?")
    expect(page.locator("dialog#keys")).to_be_visible()
    page.keyboard.press("Escape")
    paths = {"d": "/dead", "l": "/locks", "w": "/workers", "a": "/actions", "c": "/compare"}
    for key, path in {**paths, "y": "/types", "q": "/queues"}.items():
        page.keyboard.press("g")
        page.keyboard.press(key)
        page.wait_for_url(address + path)
    page.keyboard.press("g")
    page.keyboard.press("j")
    page.wait_for_url(address + "/jobs")
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")
    jid = page.locator("tr.at").get_attribute("data-jid")
    page.keyboard.press("Enter")
    page.wait_for_url(f"{address}/jobs/{jid}?list=1")
    page.keyboard.press("e")
    page.keyboard.press("u")
    page.wait_for_url(address + "/jobs")
    page.keyboard.press("Tab")
    expect(page.locator(".jump")).to_be_focused()


def test_keys_of_one_letter_can_be_turned_off(log, run, serve, open_page):
    """Single-letter keys do nothing once they are turned off, and `?` turns them on again."""
    run(2)
    address = serve(opened(log, every=60_000))
    page = open_page(address + "/jobs")
    page.keyboard.press("?")
    page.get_by_role("checkbox", name="Single-letter keys").uncheck()
    page.get_by_role("button", name="Close").click()
    page.keyboard.press("j")
    expect(page.locator("tr.at")).to_have_count(0)
    page.reload()
    page.keyboard.press("j")
    expect(page.locator("tr.at")).to_have_count(0)
    page.keyboard.press("?")
    page.get_by_role("checkbox", name="Single-letter keys").check()
    page.get_by_role("button", name="Close").click()
    page.keyboard.press("j")
    expect(page.locator("tr.at")).to_have_count(1)


def test_a_chart_by_keys_and_by_dragging(log, run, serve, open_page):
    """Arrows move on a chart and update its legend, `v` shows a table, a drag selects a time."""
    run(5)
    address = serve(opened(log, every=60_000))
    page = open_page(address + "/?range=1h")
    # The clocks on the page have moved, and the bars still lead to their jobs.
    expect(page.locator("#live-ago")).to_have_text(re.compile(r"[1-9]\d*\s(s|min) ago"))
    page.locator("#throughput .bar-a").last.focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#throughput [data-moment]")).to_contain_text(" to ")
    # One line through both plots, at the same moment.
    crosses = page.locator("#throughput .cross")
    expect(crosses).to_have_count(2)
    assert len({c.get_attribute("d").partition(" ")[0] for c in crosses.all()}) == 1
    page.keyboard.press("v")
    expect(page.locator("#throughput .chart-table tbody tr")).not_to_have_count(0)
    page.keyboard.press("v")
    expect(page.locator("#throughput .chart-table")).to_have_count(0)
    bars = page.locator("#throughput .bar-a .hit")
    first, last = bars.nth(3).bounding_box(), bars.nth(9).bounding_box()
    page.mouse.move(first["x"] + 2, first["y"] + 40)
    page.mouse.down()
    page.mouse.move(last["x"] + 2, last["y"] + 40, steps=8)
    page.mouse.up()
    page.wait_for_url("**/?since=*until=*")
    page.locator("#throughput .bar-a").last.focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/jobs?q=ended*")


def test_the_theme_is_the_systems_until_chosen(log, serve, open_page):
    """Dark follows the system; a choice by key is kept."""
    address = serve(opened(log))
    page = open_page(address + "/jobs", theme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(ground) == "rgb(16, 17, 19)"

    page.keyboard.press("t")
    page.goto(address + "/dead")

    assert page.evaluate(ground) == "rgb(253, 253, 251)"


def test_on_a_phone_the_pages_are_at_the_thumb(log, run, serve, open_page):
    """On a phone, the navigation is below, rows can be tapped, and the timeline is vertical."""
    run(5)
    address = serve(opened(log, every=60_000))
    page = open_page(address + "/jobs", width=390, height=844, has_touch=True)
    assert page.locator(".nav").bounding_box()["y"] > 700
    page.locator("#nav-dead").tap()
    page.wait_for_url(address + "/dead")
    page.goto(f"{address}/jobs/{log.jobs.dead().get().jid}")

    bar, label = page.locator(".seg-row .plot").first, page.locator(".seg-row .lab").first
    assert bar.bounding_box()["y"] > label.bounding_box()["y"]
    assert bar.bounding_box()["width"] > 300

    page.goto(address + "/jobs?q=state:skipped")
    expect(page.locator("#tab-skipped")).to_be_in_viewport(ratio=1)


def test_without_a_script_all_can_be_read(log, run, serve, open_page):
    """Without JavaScript, every page is readable, the search works, and nothing is hidden."""
    run(5)
    address = serve(opened(log))
    page = open_page(address + "/jobs", java_script_enabled=False)
    page.locator("input[name=q]").fill("state:dead")
    page.locator("input[name=q]").press("Enter")
    page.wait_for_url("**/jobs?q=state%3Adead")
    page.locator("table.jobs .type a").click()
    expect(page.locator("details.run .frames").first).to_be_visible()
    page.get_by_role("link", name="Run again").click()
    expect(page.get_by_role("heading", name="Run import again?")).to_be_visible()
    expect(page.get_by_role("button", name="Run again")).to_be_enabled()


def test_nothing_moves_where_motion_is_unwanted(log, serve, open_page):
    """With reduced motion, nothing moves."""
    page = open_page(serve(opened(log)) + "/jobs", reduced_motion="reduce")

    assert (
        page.evaluate("document.getAnimations().filter((a) => a.playState === 'running').length")
        == 0
    )
