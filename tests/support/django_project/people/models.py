"""Who signs in: a user model of the project's own, whose primary key is not a number."""

import uuid

from django.contrib.auth.models import AbstractUser
from django.db import models


class Person(AbstractUser):
    """Somebody with a login."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
