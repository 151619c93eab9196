"""Jobs in critical sections that check each other, while their workers are killed and paused."""

from __future__ import annotations

import pytest
import section_chaos


@pytest.mark.process
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("database", "faults"),
    [("sqlite", {"kill": 1}), ("postgresql", {"kill": 1, "pause": 1, "restart": 1})],
)
def test_never_two_at_once(tmp_path, postgres_server, redis_server, database, faults):
    """Four processes of eight threads, few keys: never two inside, nothing stuck or lost."""
    found, numbers = section_chaos.run(tmp_path, database, 100, faults, seed=1)
    assert {} == found.wrong
    assert numbers["stays in a section"] > 60
