"""Views that send, ask, and leave a connection open."""

import os

from django.http import JsonResponse

from dramatiq_joblog.django import get_joblog
from orders.tasks import invoice


def order(request, customer):
    amount = int(request.GET.get("amount", 1))
    return JsonResponse({"jid": invoice.send(customer, amount).message_id})


def jobs(request, customer):
    found = get_joblog().jobs.for_user(customer)
    return JsonResponse({"states": [job.state for job in found]})


def leave_open(request):
    """Open the log's connection by peewee's own method, and close nothing."""
    database = get_joblog().database
    database.connect(reuse_if_open=True)
    return JsonResponse({"open": not database.is_closed()})


def pid(request):
    return JsonResponse({"pid": os.getpid()})
