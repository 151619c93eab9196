"""The column for notes on values that could not be stored as sent."""

from dramatiq_joblog.django.migrating import migration

Migration = migration(after="0001_initial")
