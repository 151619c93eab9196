"""An actor's plan for a message, compared with full processing."""

from __future__ import annotations

import copy

import dramatiq
import pytest

from dramatiq_joblog import Exclusive, Rate, Unique
from dramatiq_joblog.broker.messages import Messages

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

#: What differs between two looks at one message.
_TIMES = {"created_at", "updated_at"}


def _actor(broker, **options):
    @dramatiq.actor(broker=broker, actor_name="pay", **options)
    def pay(user, amount=1):
        pass

    return pay


def _in_full(messages, broker, message):
    """Return the row of a message, and its options, without its actor's plan."""
    message = copy.deepcopy(message)
    messages.bonds.bind(broker, message, begins=True)
    return messages.rows.in_full(broker, message), message.options


def _planned(messages, broker, message):
    """Return the row of a message, and its options, with its actor's plan."""
    message = copy.deepcopy(message)
    plan = messages.plan(broker, message)
    messages.bonds.bind(broker, message, plan, begins=True)
    return messages.row(broker, message, plan), message.options


def _bound(messages, broker, actor, *args, **changes):
    message = actor.message(*args)
    messages.bonds.bind(broker, message)
    section = message.options.get("joblog_section")
    if section is not None:
        section.update(changes)
    return message


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"exclusive": "pay:{user}"},
        {"exclusive": Exclusive("pay:{user}", limit=3, on_conflict="wait", wait_for=5_000)},
        {"exclusive": Rate("pay:{user}", 5, per=1_000)},
        {"exclusive": ["pay:{user}", Rate("all", 9, per=1_000)]},
        {"exclusive": Exclusive("pay:{user}", limit=lambda user: int(user) + 1)},
        {"unique": "pay:{user}"},
        {"unique": Unique("pay:{user}", keep="last", ttl=5_000), "exclusive": "pay:{user}"},
    ],
    ids=lambda options: " ".join(map(str, options)) or "plain",
)
@pytest.mark.parametrize("user", ["7", "joe at home", "a://b:secret@c", "x" * 300])
def test_a_plan_says_what_a_look_in_full_says(make_broker, joblog, options, user):
    """A job's row and keys are the same with a plan and with full processing."""
    broker = make_broker("stub", joblog=joblog)
    if callable(getattr(options.get("exclusive"), "limit", None)):
        user = "7"
    messages = Messages(joblog)
    message = _bound(messages, broker, _actor(broker, **options), user)

    row, kept = _planned(messages, broker, message)
    in_full, kept_in_full = _in_full(messages, broker, message)

    assert {c: v for c, v in row.items() if c not in _TIMES} == {
        c: v for c, v in in_full.items() if c not in _TIMES
    }
    assert kept == kept_in_full


@pytest.mark.parametrize(
    "changes",
    [
        {"limit": True},
        {"limit": 7},
        {"limit": "7"},
        {"limit": -1},
        {"key": 7},
        {"key": ""},
        {"key": "another"},
        {"ttl": 1},
        {"on_conflict": "explode"},
        {"jid": "another"},
        {"jid": None},
        {"more": "of a later version"},
    ],
    ids=str,
)
def test_a_bond_of_another_shape(make_broker, joblog, changes):
    """A message with bonds from another producer or version is processed in full."""
    broker = make_broker("stub", joblog=joblog)
    messages = Messages(joblog)
    message = _bound(messages, broker, _actor(broker, exclusive="pay:{user}"), "7", **changes)

    row, kept = _planned(messages, broker, message)
    in_full, kept_in_full = _in_full(messages, broker, message)

    assert {c: v for c, v in row.items() if c not in _TIMES} == {
        c: v for c, v in in_full.items() if c not in _TIMES
    }
    assert kept == kept_in_full
    bound, bound_in_full = kept["joblog_section"], kept_in_full["joblog_section"]
    assert [*map(type, bound.values())] == [*map(type, bound_in_full.values())]


def test_a_bond_that_its_actor_knows_nothing_of(make_broker, joblog):
    """A message bound before its actor's section was removed keeps it, also on its row."""
    broker = make_broker("stub", joblog=joblog)
    messages = Messages(joblog)
    message = _bound(messages, broker, _actor(broker, exclusive="pay:{user}"), "7")
    later = make_broker("stub", joblog=joblog)
    plain = _actor(later)

    assert plain.options.get("exclusive") is None
    plan = messages.plan(later, message)
    assert plan.is_bound
    assert messages.row(later, message, plan)["section"] == "pay:7"
