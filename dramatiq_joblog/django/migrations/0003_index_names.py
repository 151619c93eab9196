"""Names of indexes."""

from dramatiq_joblog.django.migrating import migration

Migration = migration(after="0002_values")
