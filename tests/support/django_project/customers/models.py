"""Who buys."""

from django.db import models


class Customer(models.Model):
    """One customer."""

    name = models.CharField(max_length=100)

    def __str__(self):
        return self.name
