"""Views that write and send in one transaction of Django's."""

import dramatiq
from customers.models import Customer
from django.http import JsonResponse
from django.urls import path
from orders.tasks import invoice

from dramatiq_joblog import Unique
from dramatiq_joblog.errors import SectionUnknownError
from shop.urls import urlpatterns as theirs


@dramatiq.actor(unique=Unique("import"))
def imports():
    pass


def both(request):
    """Write a row and send a job."""
    customer = Customer.objects.create(name="new")
    return JsonResponse({"jid": invoice.send(customer.id).message_id})


def unique(request):
    """Write a row and send a job that is unique."""
    Customer.objects.create(name="new")
    try:
        return JsonResponse({"jid": imports.send().message_id})
    except SectionUnknownError as e:
        return JsonResponse({"error": str(e)})


urlpatterns = [*theirs, path("both", both), path("unique", unique)]
