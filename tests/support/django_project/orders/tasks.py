"""The jobs of orders."""

import dramatiq
from customers.models import Customer
from django.conf import settings

#: The log's options stand on actors once its middleware is there.
OPTIONS = {} if settings.STEP == "before" else {"job_type": "invoice", "job_user": "customer"}


@dramatiq.actor(max_retries=1, min_backoff=10, **OPTIONS)
def invoice(customer, amount=1):
    Customer.objects.get(id=customer)
    if amount > 5:
        raise ValueError(f"{amount} is too much")
