"""Notices by the URLs of apprise, to a real HTTP receiver."""

from __future__ import annotations

import sys

import pytest
from receiver import receiving

from dramatiq_joblog import Alert, ConfigurationError, JobLog

# What apprise imports is old.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def test_without_the_library(sqlite_url, monkeypatch):
    """URLs without apprise are refused as the log is made, with the command that installs it."""
    monkeypatch.setitem(sys.modules, "apprise", None)

    with pytest.raises(ConfigurationError, match=r"pip install 'dramatiq-joblog\[alerts\]'"):
        JobLog(sqlite_url, notify="json://localhost/")


def test_a_url_that_is_not_understood(sqlite_url):
    """A URL that apprise does not understand is refused, and not shown: it is a secret."""
    pytest.importorskip("apprise")

    with pytest.raises(ConfigurationError, match="URL number 2") as caught:
        JobLog(sqlite_url, notify=["json://localhost/", "slck://s3cret/s3cret"])
    assert "s3cret" not in str(caught.value)


def test_a_notice_by_url(database_url, joblog, job_factory):
    """A notice is posted as Markdown; an answer that refuses it is a failure, tried again."""
    pytest.importorskip("apprise")
    with receiving() as receiver:
        to = receiver.url.replace("http://", "json://")
        log = JobLog(
            database_url, alerts=[Alert("dead *ones*", "state:dead")], notify=to, alerts_every=1_000
        )
        job = job_factory(state="dead")
        receiver.status = 500
        log.core.alerting.round()
        assert "apprise could not send it" in log.alerts.get().error
        receiver.status = 200
        log.core.tables.alert.update(next_try_at=0).execute()
        log.core.alerting.round()
        assert log.alerts.get().sent == "opened"
        log.close()

    body = receiver.notices[-1]
    assert body["title"] == "dead *ones*"
    assert job.jid in body["message"]
