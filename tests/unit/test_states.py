"""The words of the log, and the rule on who may begin."""

from __future__ import annotations

import itertools
import json

import pytest

from dramatiq_joblog import DeadReason, State
from dramatiq_joblog.states import FINAL, OPEN, STARTABLE, Start, judge_start


def judge(state, attempt=1, token="old", new_attempt=1, new_token="new", **flags):
    flags = {"redelivered": False, "rerun": False} | flags
    return judge_start(
        state=state,
        attempt=attempt,
        token=token,
        new_attempt=new_attempt,
        new_token=new_token,
        **flags,
    )


def test_members_are_their_text():
    """A state or a reason is, compares, prints and serialises as its text."""
    assert State.DEAD == "dead"
    assert "dead" == str(State.DEAD) == f"{State.DEAD}"
    assert "  dead" == f"{State.DEAD:>6}"
    assert '"throws"' == json.dumps(DeadReason.THROWS)
    assert hash("dead") == hash(State.DEAD)


def test_every_state_has_one_kind():
    """Each state is final, open, one that runs begin from, or retrying."""
    kinds = [FINAL, OPEN, STARTABLE, {State.RETRYING}]
    assert set(State) == set().union(*kinds)
    assert all(not set(a) & set(b) for a, b in itertools.combinations(kinds, 2))


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("rerun", [False, True])
def test_a_start_seen_twice_is_known(state, rerun):
    """The same run's start changes nothing, whatever the row says."""
    assert Start.KNOWN is judge(state, token="new", rerun=rerun)


@pytest.mark.parametrize(
    ("expected", "state", "case"),
    [
        (Start.BEGIN, "enqueued", {}),
        (Start.BEGIN, "delayed", {}),
        (Start.BEGIN, "waiting", {}),
        (Start.BEGIN, "enqueued", {"attempt": 1, "new_attempt": 2}),
        *((Start.REFUSE, state, {"attempt": 2, "new_attempt": 1}) for state in State),
        (Start.BEGIN, "finished", {"attempt": 2, "new_attempt": 1, "rerun": True}),
        (Start.REFUSE, "finished", {"rerun": True, "late": True}),
        (Start.REFUSE, "dead", {"late": True}),
        (Start.REFUSE, "started", {"late": True}),
        (Start.BEGIN, "dead", {"late": True, "new_attempt": 2}),
        (Start.BEGIN, "skipped", {"late": True, "new_attempt": 2}),
        (Start.REFUSE, "finished", {"late": True, "new_attempt": 2, "rerun": True}),
        (Start.TAKE_OVER, "started", {"late": True, "new_attempt": 2}),
        (Start.BEGIN, "waiting", {"late": True}),
        (Start.BEGIN, "retrying", {"attempt": 1, "new_attempt": 2}),
        (Start.REFUSE, "retrying", {"attempt": 1, "new_attempt": 1}),
        (Start.TAKE_OVER, "started", {"attempt": 1, "new_attempt": 1}),
        (Start.TAKE_OVER, "started", {"attempt": 1, "new_attempt": 2}),
        (Start.REFUSE, "started", {"attempt": 2, "new_attempt": 1}),
        (Start.TAKE_OVER, "lost", {"attempt": 1, "new_attempt": 1}),
        (Start.REFUSE, "lost", {"attempt": 2, "new_attempt": 1}),
        (Start.REFUSE, "finished", {}),
        (Start.REFUSE, "finished", {"new_attempt": 2}),
        (Start.BEGIN, "finished", {"rerun": True}),
        (Start.REFUSE, "dead", {"redelivered": True}),
        (Start.BEGIN, "dead", {"redelivered": True, "rerun": True}),
        (Start.BEGIN, "dead", {}),
        (Start.REFUSE, "skipped", {"redelivered": True}),
        (Start.BEGIN, "skipped", {}),
    ],
)
def test_who_may_begin(expected, state, case):
    """What a run may do that begins on a row in this state."""
    assert expected is judge(state, **case)
