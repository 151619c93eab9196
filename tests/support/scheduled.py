"""A scheduled job: ``dramatiq scheduled`` runs it, ``python scheduled.py NAME`` sends it.

The schedulers are APScheduler, dramatiq-crontab and periodiq, each used as documented.
"""

from __future__ import annotations

import importlib.util
import os
import sys

import brokers
import dramatiq

from dramatiq_joblog import Expect, JobLog, JobLogMiddleware

#: Milliseconds within which a job of each type must have finished.
EVERY, GRACE = 8_000, 2_000

joblog = JobLog(
    os.environ["SCHEDULED_DATABASE"],
    alerts=[Expect("tick", every=EVERY, grace=GRACE)],
    alerts_every=1_000,
    notify=lambda notice: print("NOTICE", notice.event, flush=True),
)
broker = brokers.connect(os.environ["SCHEDULED_BROKER"], namespace="scheduled")
broker.add_middleware(JobLogMiddleware(joblog))
options = {}
if importlib.util.find_spec("periodiq"):
    import periodiq

    broker.add_middleware(periodiq.PeriodiqMiddleware(skip_delay=30))
    options = {"periodic": periodiq.cron("* * * * *")}
dramatiq.set_broker(broker)


@dramatiq.actor(job_type="tick", **options)
def tick():
    pass


def by_apscheduler():
    """Send it every second."""
    from apscheduler.schedulers.blocking import BlockingScheduler

    scheduler = BlockingScheduler(timezone="UTC")
    scheduler.add_job(tick.send, "interval", seconds=1)
    scheduler.start()


def by_crontab():
    """Send it every second, with the command of dramatiq-crontab."""
    import django
    from django.conf import settings
    from django.core.management import call_command

    settings.configure(INSTALLED_APPS=["dramatiq_crontab"], USE_TZ=True)
    django.setup()
    import dramatiq_crontab

    dramatiq_crontab.interval(seconds=1)(tick)
    call_command("crontab", no_heartbeat=True, no_task_loading=True)


def by_periodiq():
    """Send it every minute, with the command of periodiq."""
    sys.argv = ["periodiq", "--verbose", "scheduled"]
    periodiq.entrypoint()


if __name__ == "__main__":
    # The module that the actors belong to.
    import scheduled

    getattr(scheduled, f"by_{sys.argv[1]}")()
