"""Invalid arguments are refused with the parameter's name, before anything is done."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from dramatiq_joblog import JobLog, JobLogError, JobLogMiddleware
from dramatiq_joblog.web import dashboard, status


class Odd:
    """A meaningless value."""

    def __repr__(self):
        return "<Odd>"


NO_TEXT = [0, 1.5, True, b"x", ["x"], {"x": 1}, Odd(), timedelta(seconds=1)]
NO_LIST = [None, 0, 1.5, True, "x", b"x", {"x": 1}, Odd()]
NO_MAPPING = [0, 1.5, True, "x", b"x", ["x"], Odd()]
NO_QUERY = [None, 0, True, "state:dead", ["x"], {}, Odd()]
NO_FLAG = [None, 0, 1, "no", [], Odd()]
NO_WHOLE = [None, 0, -1, 1.5, True, "x", float("nan"), 10**30, Odd()]
NO_CALLABLE = [0, True, "x", [], Odd()]


def refused(call: Any, name: str, values: list[Any], errors: Any = JobLogError) -> None:
    """Check that each value is refused with a sentence that begins with its name."""
    for value in values:
        with pytest.raises(errors) as caught:
            call(**{name: value})
        said = str(caught.value)
        assert name in said, (value, said)
        assert len(said) < 300, said
        assert "\n" not in said, said


NOW = datetime.now(timezone.utc)
#: Each method's parameters, what they cannot use, and what else the method needs.
METHODS: dict[str, tuple[dict[str, list[Any]], dict[str, Any]]] = {
    "cancel": ({"who": NO_TEXT, "reason": NO_TEXT}, {"jid": "a"}),
    "cancel_all": (
        {"query": NO_QUERY, "who": NO_TEXT, "reason": NO_TEXT, "progress": NO_CALLABLE},
        {},
    ),
    "complete": ({"key": [None, *NO_TEXT], "prefix": NO_TEXT}, {"key": "state"}),
    "counts": ({"query": NO_QUERY[1:]}, {}),
    "dead_groups": ({"windows": NO_LIST}, {}),
    "dismiss": ({"who": NO_TEXT}, {}),
    "mark": ({"who": NO_TEXT}, {"name": "v1"}),
    "profile": ({"name": [None, "", *NO_TEXT]}, {"since": NOW}),
    "prune": ({"keep": NO_MAPPING, "dry_run": NO_FLAG, "progress": NO_CALLABLE}, {}),
    "record": (
        {"what": [None, "", *NO_TEXT], "who": NO_TEXT, "detail": NO_TEXT},
        {"what": "noted", "who": "ada"},
    ),
    "requeue": ({"arguments": NO_MAPPING}, {"jid": "a"}),
    "requeue_all": ({"query": NO_QUERY, "who": NO_TEXT, "progress": NO_CALLABLE}, {}),
    "set_limit": ({"who": NO_TEXT}, {"key": "k", "limit": 1}),
    "unlock": (
        {"key": [None, "", *NO_TEXT], "reason": [None, " ", *NO_TEXT], "fence": NO_WHOLE},
        {"key": "k", "fence": 1, "reason": "it hangs", "who": "ada"},
    ),
    "waiters_by_key": ({"keys": [None, "key", [None], [""], 7]}, {}),
    "waiters": ({"key": [None, "", *NO_TEXT]}, {}),
}


@pytest.mark.parametrize("method", METHODS)
def test_methods(joblog, method):
    """A method names its invalid parameter."""
    parameters, others = METHODS[method]
    query = joblog.jobs.dead() if method.endswith("_all") else None
    for name, values in parameters.items():
        given = others | ({} if query is None or name == "query" else {"query": query})
        given.pop(name, None)

        def call(_given: Any = given, **odd: Any) -> Any:
            return getattr(joblog, method)(**_given, **odd)

        refused(call, name, values)


@pytest.mark.parametrize("ask", ["search", "save_search"])
def test_words(joblog, ask):
    """A search must be a string."""
    for value in [None, *NO_TEXT]:
        given = ("mine", value) if ask == "save_search" else (value,)
        with pytest.raises(JobLogError, match="is not a search"):
            getattr(joblog, ask)(*given)


@pytest.mark.parametrize("name", ["of_type", "of_actor", "in_queue", "in_state", "excluding"])
def test_several_in_one(joblog, name):
    """A list in place of its values is refused: it would find nothing, or not be SQL."""
    for value in ([], ["import"], ("import",), {"import"}):
        with pytest.raises(JobLogError, match="one by one"):
            getattr(joblog.jobs, name)(value)


def test_a_query_of_another_log(joblog, sqlite_url):
    """Queries of another log are refused by cancel, requeue and counts."""
    with_others = JobLog(sqlite_url.replace(".db", "-other.db"))
    with_others.create_tables()
    query = with_others.jobs.dead()
    for call in (joblog.cancel_all, joblog.requeue_all, joblog.counts):
        with pytest.raises(JobLogError, match="another log"):
            call(query)
    with_others.close()


def test_settings_of_a_log(sqlite_url):
    """A log names its invalid setting, and is not created."""

    def make(**given: Any) -> JobLog:
        return JobLog(sqlite_url, **given)

    refused(make, "job_types", NO_LIST[1:])
    refused(make, "keep", NO_MAPPING)
    refused(make, "keep_types", [*NO_MAPPING, {"import": "x"}])
    refused(make, "spool", ["", " ", "a\0b", *NO_TEXT])
    refused(make, "store_args", NO_FLAG)
    refused(make, "seal_key", [0, 1.5, Odd()])
    refused(make, "redact", [0.5, b"x", ["ok", 1], Odd()], TypeError)


def test_settings_of_the_middleware(joblog):
    """The middleware names its invalid setting."""

    def make(**given: Any) -> JobLogMiddleware:
        return JobLogMiddleware(**{"joblog": joblog} | given)

    refused(make, "joblog", [None, "sqlite:///jobs.db", joblog.database, JobLog])
    refused(make, "heartbeat", NO_WHOLE)
    refused(make, "heartbeat_timeout", NO_WHOLE)
    refused(make, "outcome_log", NO_FLAG)


@pytest.mark.full
def test_settings_of_the_page(joblog):
    """The dashboard names its invalid setting, and shows no key."""

    def make(**given: Any) -> Any:
        return dashboard(**{"joblog": joblog} | given)

    refused(make, "joblog", [None, "sqlite:///jobs.db", JobLog])
    refused(make, "broker", ["redis", 0, Odd()])
    refused(make, "key", [b"a key of many letters", 10**30, Odd()])
    refused(make, "metrics_token", [b"a key of many letters", 10**30, Odd()])
    refused(make, "login", ["ab", {"a": 1, "b": 2}, 0, Odd()])
    refused(make, "read_only", NO_FLAG)
    refused(make, "every", NO_WHOLE)
    refused(make, "timeout", NO_WHOLE)
    refused(make, "time_zone", [None, *NO_TEXT])
    refused(make, "title", [None, "", *NO_TEXT])
    refused(make, "environment", NO_TEXT)
    refused(status, "joblog", [None, "sqlite:///jobs.db"])
