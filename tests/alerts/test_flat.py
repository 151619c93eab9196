"""Rules cost the same however many jobs there are: each is answered from an index."""

from __future__ import annotations

import pytest
from playhouse.test_utils import count_queries

from dramatiq_joblog import Alert, Expect, JobLog

HOUR = 3_600_000
#: Tables that grow with the jobs.
LARGE = ('"joblog_job"', '"joblog_total"', '"joblog_failure"')
RULES = {
    "dead": Alert("a", "state:dead", within=HOUR),
    "dead of a type": Alert("a", "state:dead type:import,mail", within=24 * HOUR),
    "dead of an actor": Alert("a", "state:dead actor:work", within=HOUR),
    "an error": Alert("a", "state:dead error:ValueError", within=HOUR),
    "finished": Alert("a", "state:finished", more_than=100, within=HOUR),
    "retrying": Alert("a", "state:retrying", more_than=50),
    "lost": Alert("a", "state:lost"),
    "a user": Alert("a", "user:7 state:dead", within=HOUR),
    "expected": Expect("import", every=1_000, grace=0),
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_no_rule_reads_the_whole_table(sqlite_database, rule):
    """SQLite finds the jobs of a rule by an index, and sorts none but those that it found."""
    log = JobLog(sqlite_database, alerts=[rule], alerts_every=1_000)
    log.core.alerting.round()
    # It was watched for long.
    log.core.tables.alert.update(first_seen_at=1).execute()
    with count_queries() as counted:
        log.core.alerting.round()
    asked = [query.msg for query in counted.get_queries()]

    plans = []
    for text, values in asked:
        if text.startswith("SELECT") and any(table in text for table in LARGE):
            plan = log.database.execute_sql(f"EXPLAIN QUERY PLAN {text}", values).fetchall()
            plans += [row[3] for row in plan]
    log.close()

    assert plans
    read = [step for step in plans if step.startswith("SCAN") and "CONSTANT ROW" not in step]
    assert [] == [step for step in read if "INDEX" not in step]
