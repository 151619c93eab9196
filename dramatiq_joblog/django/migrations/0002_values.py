"""What could not be kept as it was."""

from dramatiq_joblog.django.migrating import migration

Migration = migration(after="0001_initial")
