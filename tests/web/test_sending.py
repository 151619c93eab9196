"""Responses are compressed, and empty if nothing has changed."""

from __future__ import annotations

import gzip
import re
import time

import pytest
from pages import opened
from starlette.testclient import TestClient

LIVE = ("/", "/jobs", "/types", "/users/7", "/dead", "/queues", "/locks", "/workers", "/actions")


@pytest.fixture
def page(joblog, job_factory):
    """Return a client of the dashboard of a log in which nothing happens."""
    job_factory(actor="load", user_id=7, duration=5)
    job_factory(actor="load", user_id=7, state="dead", error_type="KeyError")
    joblog.core.totals.catch_up(int(time.time() * 1000))
    with TestClient(opened(joblog), base_url="http://localhost") as asking:
        yield asking


@pytest.mark.few(3)
@pytest.mark.parametrize("path", LIVE)
def test_a_quiet_log_costs_next_to_nothing(page, path):
    """A live page gets only headers while nothing but the time has changed."""
    first = page.get(path)
    assert f'data-etag="{first.headers["etag"][3:-1]}"' in first.text
    again = page.get(path, headers={"if-none-match": first.headers["etag"]})
    size = sum(len(name) + len(value) + 4 for name, value in again.headers.items())
    assert again.status_code == 304
    assert len(again.content) + size < 2_000
    assert abs(int(again.headers["joblog-now"]) - time.time() * 1000) < 10_000


def test_a_change_is_sent(page, job_factory):
    """As soon as a job has changed, the page is sent again."""
    tag = page.get("/jobs").headers["etag"]
    job_factory(actor="other")
    answer = page.get("/jobs", headers={"if-none-match": tag})
    assert answer.status_code == 200
    assert "other" in answer.text


def test_tags_of_others_are_not_ours(page):
    """An unknown ETag gets the page, whatever its form."""
    for tag in ("*", 'W/"x"', "", '"' + "a" * 20 + '"', "\u00e9".encode()):
        assert page.get("/dead", headers={"if-none-match": tag}).status_code == 200


def test_answers_are_compressed(page):
    """Pages, JSON and files are compressed only for clients that support it."""
    style = re.search(r'href="(/static/[^"]+style.css)"', page.get("/").text)[1]
    for path in ("/", "/jobs.json", style):
        with page.stream("GET", path, headers={"accept-encoding": "gzip"}) as answer:
            raw = b"".join(answer.iter_raw())
        if answer.headers.get("content-encoding") == "gzip":
            assert len(raw) == int(answer.headers["content-length"])
            assert len(gzip.decompress(raw)) > len(raw)
            assert "accept-encoding" in answer.headers["vary"]
        else:
            assert path == "/jobs.json"
        plain = page.get(path, headers={"accept-encoding": "identity"})
        assert "content-encoding" not in plain.headers


def test_the_length_says_nothing(page):
    """The same page has a different length each time, so that secrets cannot be measured."""

    def length():
        with page.stream("GET", "/dead", headers={"accept-encoding": "gzip"}) as answer:
            return len(b"".join(answer.iter_raw()))

    assert len({length() for _ in range(12)}) > 1
