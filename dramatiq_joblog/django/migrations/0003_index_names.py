"""Name the unique indexes after their tables."""

from dramatiq_joblog.django.migrating import migration

Migration = migration(after="0002_values")
