"""Add the table of muted problems."""

from dramatiq_joblog.django.migrating import migration

Migration = migration(after="0006_searches")
