"""Sends three jobs, runs them by a worker on the stub broker, and prints what each table has."""

import json
import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")

import django

django.setup()

import dramatiq
from customers.models import Customer
from django.conf import settings
from django_dramatiq.models import Task
from orders.tasks import invoice

customer, _ = Customer.objects.get_or_create(name="ada")
broker = dramatiq.get_broker()
for amount in (1, 2, 9):
    # When a retry comes due, AdminMiddleware may write "enqueued" after its end.
    invoice.send_with_options(args=(customer.id, amount), max_retries=0)
worker = dramatiq.Worker(broker, worker_timeout=50, worker_threads=1)
worker.start()
broker.join("default", fail_fast=False, timeout=30_000)
worker.join()
worker.stop()
counts = {"tasks": Task.tasks.count()}
if settings.STEP != "before":
    from dramatiq_joblog.django import get_joblog

    log = get_joblog()
    log.close()
    counts |= {"jobs": log.jobs.count(), "dead": log.jobs.dead().count()}
    counts["of ada"] = log.jobs.for_user(customer).count()
print(json.dumps(counts))
