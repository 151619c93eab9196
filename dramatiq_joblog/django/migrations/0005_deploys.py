"""Add the table of marks, such as deployments."""

from dramatiq_joblog.django.migrating import migration

Migration = migration(after="0004_alerts")
