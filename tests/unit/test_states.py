"""States and reasons, and the rule on which runs may begin."""

from __future__ import annotations

import itertools
import json

import pytest

from dramatiq_joblog import DeadReason, State
from dramatiq_joblog.states import FINAL, OPEN, STARTABLE, Start, judge_start


def judge(state, attempt=1, token="old", new_attempt=1, new_token="new", **flags):
    flags = {"repeated": False, "rerun": None} | flags
    return judge_start(
        state=state,
        attempt=attempt,
        token=token,
        new_attempt=new_attempt,
        new_token=new_token,
        **flags,
    )


def test_members_are_their_text():
    """A state or a reason is a string: it compares, prints and serialises as its text."""
    assert State.DEAD == "dead"
    assert "dead" == str(State.DEAD) == f"{State.DEAD}"
    assert "  dead" == f"{State.DEAD:>6}"
    assert '"throws"' == json.dumps(DeadReason.THROWS)
    assert hash("dead") == hash(State.DEAD)


def test_every_state_has_one_kind():
    """Each state is final, open, startable, or retrying."""
    kinds = [FINAL, OPEN, STARTABLE, {State.RETRYING}]
    assert set(State) == set().union(*kinds)
    assert all(not set(a) & set(b) for a, b in itertools.combinations(kinds, 2))


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("rerun", [False, True])
def test_a_start_seen_twice_is_known(state, rerun):
    """A repeated start of the same run changes nothing, whatever the row."""
    assert Start.KNOWN is judge(state, token="new", rerun=rerun)


@pytest.mark.parametrize(
    ("expected", "state", "case"),
    [
        # Of another delivery, or of one that nobody knows: it runs, as it does without a log.
        *((Start.BEGIN, str(state), {}) for state in State if state not in OPEN),
        *((Start.TAKE_OVER, str(state), {}) for state in sorted(OPEN)),
        (Start.BEGIN, "enqueued", {"new_attempt": 2}),
        (Start.BEGIN, "finished", {"attempt": 2}),
        (Start.BEGIN, "dead", {"attempt": 2}),
        (Start.BEGIN, "retrying", {"attempt": 2}),
        (Start.TAKE_OVER, "started", {"attempt": 2}),
        (Start.TAKE_OVER, "started", {"new_attempt": 2}),
        # Of a delivery of which a run has ended.
        *((Start.REFUSE, str(state), {"repeated": True}) for state in State),
        *((Start.BEGIN, str(state), {"repeated": True, "rerun": True}) for state in sorted(FINAL)),
        (Start.REFUSE, "retrying", {"repeated": True, "rerun": True}),
        # Once ever.
        (Start.REFUSE, "finished", {"rerun": False}),
        (Start.BEGIN, "dead", {"rerun": False}),
        (Start.BEGIN, "retrying", {"rerun": False, "new_attempt": 2}),
        # Of the past: only a newer attempt.
        *((Start.REFUSE, str(s), {"late": True, "attempt": 2}) for s in State),
        *((Start.REFUSE, str(s), {"late": True}) for s in State if s not in STARTABLE),
        (Start.REFUSE, "finished", {"late": True, "new_attempt": 2, "rerun": True}),
        (Start.BEGIN, "dead", {"late": True, "new_attempt": 2}),
        (Start.BEGIN, "retrying", {"late": True, "new_attempt": 2}),
        (Start.TAKE_OVER, "started", {"late": True, "new_attempt": 2}),
        (Start.BEGIN, "waiting", {"late": True}),
        # The cancellation meant this message.
        *((Start.REFUSE, str(s), {"cancelled": True, "rerun": True}) for s in State),
    ],
)
def test_who_may_begin(expected, state, case):
    """What a run that begins may do, for each state of the row."""
    assert expected is judge(state, **case)
