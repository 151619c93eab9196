"""Jobs in critical sections that check each other, while their workers are killed and paused."""

from __future__ import annotations

import pytest
import section_chaos
import tiers
from chaos_check import Findings
from section_chaos import Stay


@pytest.mark.process
@pytest.mark.parametrize(
    ("database", "faults"),
    [
        ("sqlite", {"cancel": 1, "kill": 1}),
        pytest.param(
            "postgresql", {"cancel": 2, "kill": 1, "pause": 1, "restart": 1}, marks=pytest.mark.full
        ),
    ],
)
def test_never_two_at_once(request, tmp_path, redis_server, database, faults):
    """Processes of eight threads, few keys: never two in a section, nothing stuck or lost."""
    if database == "postgresql":
        request.getfixturevalue("postgres_server")  # skips where there is none
    jobs, processes = (80, 3) if tiers.whole() else (50, 2)
    found, numbers = section_chaos.run(
        tmp_path, database, jobs, faults, seed=1, processes=processes
    )
    assert {} == found.wrong
    assert numbers["stays in a section"] > 0.6 * jobs


@pytest.mark.parametrize("lost", [True, False])
def test_who_is_taken_to_be_beside(lost):
    """A job meets those inside when it enters, and not those that enter while it is paused."""
    before = Stay("key", 1, 0.0, "a", ended=6.0, lost=lost)
    paused = Stay("key", 2, 5.0, "b", ended=20.0, lost=True, crowded=5.1)
    later = [Stay("key", n, 10.0 + n, "c", ended=10.5 + n) for n in (3, 4)]
    found = Findings()
    section_chaos.check_beside(found, [before, paused, *later])
    assert {} == found.wrong

    # It goes on, and meets the last of those that entered in turn.
    paused.crowded = 14.2
    section_chaos.check_beside(found, [before, paused, *later])
    assert {} == found.wrong

    paused.crowded, paused.lost = 5.1, False
    section_chaos.check_beside(found, [before, paused, *later])
    assert ([] if lost else ["side by side"]) == list(found.wrong)

    paused.crowded, found = 14.2, Findings()
    section_chaos.check_beside(found, [before, paused, *later])
    assert ["side by side"] == list(found.wrong)


@pytest.mark.parametrize(("late", "wrong"), [(0.0, ["too many starts"]), (0.2, [])])
def test_what_is_too_many_starts(late, wrong):
    """Too many starts are found, without assuming any start earlier than possible."""
    starts = [Stay("key-rate", 0, 0.0, "a", start=n * 0.09, body=n * 0.09) for n in range(6)]
    starts[-1].body += late
    found = Findings()
    section_chaos.check_rates(found, starts)
    assert wrong == list(found.wrong)
