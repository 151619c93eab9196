"""A short chaos run; ``make chaos`` is a long one."""

from __future__ import annotations

import chaos
import pytest


@pytest.mark.process
@pytest.mark.full
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("database", "acks"), [("postgresql", "auto"), ("sqlite", "plain")])
def test_chaos(tmp_path, postgres_server, real_redis, database, acks):
    """Workers killed and paused, database and Redis unavailable, connections cut: no wrong row."""
    faults = {"kill": 2, "outage": 1, "pause": 1, "cut": 1, "redis_away": 1}
    found, table = chaos.run(tmp_path, database, 120, faults, 4, acks=acks)
    assert {} == found.wrong, table
    assert found.runs >= 120
