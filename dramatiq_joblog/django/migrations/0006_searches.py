"""Add the table of saved searches."""

from dramatiq_joblog.django.migrating import migration

Migration = migration(after="0005_deploys")
