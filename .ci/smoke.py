"""Logs one job with nothing installed but the wheel and what it needs."""

from pathlib import Path

import dramatiq
from dramatiq.brokers.stub import StubBroker

import dramatiq_joblog

assert "site-packages" in dramatiq_joblog.__file__, dramatiq_joblog.__file__
joblog = dramatiq_joblog.JobLog(f"sqlite:///{Path('smoke.db').resolve()}")
joblog.create_tables()
broker = StubBroker()
broker.add_middleware(dramatiq_joblog.JobLogMiddleware(joblog))
dramatiq.set_broker(broker)


@dramatiq.actor
def work(number: int) -> int:
    """Return its size."""
    return abs(number)


message = work.send(-1)
worker = dramatiq.Worker(broker, worker_timeout=100, worker_threads=1)
worker.start()
broker.join("default", timeout=10_000)
worker.stop()
job = joblog.get(message.message_id)
assert job.state == "finished", job.state
joblog.close()
print(f"{job.actor}({job.args}) is {job.state}, on {dramatiq_joblog.__file__.rpartition('/')[0]}")
