"""The limits and times that the documents name are those of the code."""
# ruff: noqa: E501 - a row of the table is a line

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: A sentence of a page, and the constants that its numbers come from, with their values.
FIGURES = [
    ("README.md", "within the heartbeat timeout (30 s)", "recording.heartbeat.DEFAULT_HEARTBEAT_TIMEOUT", 30_000),
    ("docs/alerts.md", "check the rules every 15 seconds", "alerts.alerting.DEFAULT_EVERY", 15_000),
    ("docs/alerts.md", "repeated at most once an hour", "alerts.ledger.REPEAT_EVERY", 3_600_000),
    ("docs/alerts.md", "at most six notices an hour", "alerts.ledger.MOST_NOTICES", 6),
    ("docs/alerts.md", "A notifier has 10 seconds", "alerts.notifiers.NOTIFY_WITHIN", 10_000),
    ("docs/alerts.md", "growing delays, eight times in all", "alerts.ledger.MOST_TRIES", 8),
    ("docs/alerts.md", "after 15 seconds and then with growing delays", "alerts.ledger.AGAIN", 15_000),
    ("docs/alerts.md", "counting stops at 1,000", "alerts.rules.MOST", 1_000),
    ("docs/alerts.md", "takes longer than five seconds, or a round", "alerts.alerting.RULE_WITHIN", 5_000),
    ("docs/alerts.md", "a round that takes longer than a minute", "alerts.alerting.ROUND_WITHIN", 60_000),
    ("docs/asking.md", "on at most eight threads", "asking.threads.THREADS", 8),
    ("docs/asking.md", "for at most 512 jobs each", "asking.watcher.MOST_JOBS", 512),
    ("docs/asking.md", "after 50 ms, later every 100 ms", "asking.watcher.TICK", 50),
    ("docs/asking.md", "later every 100 ms", "asking.watcher.TICK_AT_MOST", 100),
    ("docs/asking.md", "end two seconds after the last wait", "asking.watcher.LINGER", 2_000),
    ("docs/asking.md", "30 seconds by default", "asking.aside.DEFAULT_TIMEOUT", 30_000),
    ("docs/backends.md", "waits up to 10 s for a free connection", "database.checkout.FREE_WITHIN", 10_000),
    ("docs/backends.md", "waits 3 s, then tries again", "database.connection.STATEMENT_TIMEOUT", 3_000),
    ("docs/fields.md", "Errors are kept up to 10,000 characters", "payload.sanitize.MAX_MESSAGE", 10_000),
    ("docs/fields.md", "tracebacks up to 100,000", "payload.sanitize.MAX_TRACEBACK", 100_000),
    ("docs/fields.md", "`meta` are kept up to 64,000", "payload.sanitize.MAX_DOCUMENT", 64_000),
    ("docs/fields.md", "from three on, `note` suspects", "recording.interruptions.SUSPICIOUS", 3),
    ("docs/fields.md", "has run for 50 ms or queries the log", "recording.inbox.SOON", 50),
    ("docs/fields.md", "| 5,000 and 30,000 ms |", "recording.heartbeat.DEFAULT_HEARTBEAT", 5_000),
    ("docs/inside.md", "64,000 characters per run", "recording.log_lines.MAX_LINES", 64_000),
    ("docs/inside.md", "each line counts 32 characters more", "recording.log_lines._ALSO", 32),
    ("docs/inside.md", "cut after 10,000 characters", "payload.sanitize.MAX_MESSAGE", 10_000),
    ("docs/oncall.md", "within its `ttl` (60 s by default)", "locking.options.DEFAULT_TTL", 60_000),
    ("docs/performance.md", "recorded in batches of 400", "broker.bulk.BATCH", 400),
    ("docs/query.md", "counted up to 10,000", "reading.counts.DEFAULT_CAP", 10_000),
    ("docs/scale.md", "check at most 20,000 jobs per page", "schema.query.LOOK", 20_000),
    ("docs/scale.md", "500 jobs per transaction", "admin.maintenance._BATCH", 500),
    ("docs/scale.md", "pause for thirty-nine times as long", "admin.maintenance._REST", 39),
    ("docs/sections.md", "ttl=60_000, hold=", "locking.options.DEFAULT_TTL", 60_000),
    ("docs/sections.md", 'until="finished", ttl=86_400_000', "locking.options.DEFAULT_UNIQUE_TTL", 86_400_000),
    ("docs/sections.md", "nothing has held for a day are deleted", "locking.locks.KEEP_IDLE", 86_400_000),
    ("docs/sections.md", "at most 75 milliseconds later", "broker.pace.STILL", 75),
    ("docs/sections.md", "they notice within 500 milliseconds", "broker.pace.SELDOM", 500),
    ("docs/sections.md", "the key is held for a minute", "recording.newest.ON_ITS_WAY", 60_000),
    ("docs/security.md", "any secret of at least 6 characters", "payload.redaction.MIN_RECOGNISED", 6),
    ("docs/security.md", "after 12 hours; all sessions", "web.door.SESSION_FOR", 12 * 3600),
    ("docs/security.md", "After ten wrong keys or passwords", "web.door.WRONG_AT_MOST", 10),
    ("docs/security.md", "within a minute", "web.door.WRONG_WITHIN", 60.0),
    ("docs/web.md", "of at least 16 characters", "web.app.MIN_KEY", 16),
    ("docs/web.md", "at most a million bytes", "web.access.MAX_BODY", 1_000_000),
    ("docs/web.md", "other short forms 20,000", "web.access.MAX_SMALL_BODY", 20_000),
    ("docs/web.md", "must arrive within 30 seconds", "web.access.BODY_WITHIN", 30.0),
    ("docs/web.md", "at most 1,000 at a time", "web.subjects.MOST", 1_000),
    ("docs/web.md", "up to 400 in the selected period", "web.users.MOST_JOBS", 400),
    ("docs/web.md", "milliseconds between two updates, 2,000", "web.app.DEFAULT_EVERY", 2_000),
    ("docs/web.md", "for one part of a page, 3,000", "web.app.DEFAULT_TIMEOUT", 3_000),
    ("docs/web.md", "cached for two seconds", "web.state.FRESH_FOR", 2.0),
    ("docs/web.md", "runs on eight threads of its own", "asking.threads.THREADS", 8),
    ("docs/web.md", "32 requests wait", "asking.threads.WAITING", 32),
    ("docs/web.md", "does not respond for 8 seconds", "web.context.ANSWER_WITHIN", 8_000),
    ("docs/web.md", "(3.5 for `/health` and `/metrics`)", "web.context.HEALTH_WITHIN", 3_500),
    ("docs/web.md", "`pages=` (500)", "web.export.DEFAULT_PAGES", 500),
    ("docs/integrations/progress.md", "A stream ends after five minutes", "web.status.LASTS", 300.0),
    ("docs/integrations/progress.md", "is sent every 15 seconds", "web.status.ALIVE_EVERY", 15.0),
    ("docs/integrations/progress.md", "404, after half a second", "web.status.LATE_ROW", 500),
]  # fmt: skip


@pytest.mark.parametrize(("page", "sentence", "constant", "value"), FIGURES)
def test_a_figure_is_that_of_the_code(page, sentence, constant, value):
    """A number on a page is still on the page, and equals the code's."""
    text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
    module, _, name = constant.rpartition(".")

    assert sentence in text
    assert getattr(importlib.import_module(f"dramatiq_joblog.{module}"), name) == value
