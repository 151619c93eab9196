"""Searches that people saved under a name."""

from dramatiq_joblog.django.migrating import migration

Migration = migration(after="0005_deploys")
