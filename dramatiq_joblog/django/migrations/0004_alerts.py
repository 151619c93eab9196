"""Add the table with the state of alerts."""

from dramatiq_joblog.django.migrating import migration

Migration = migration(after="0003_index_names")
