"""Drop the old index of jobs that wait for a section."""

from dramatiq_joblog.django.migrating import migration

Migration = migration(after="0007_mutes")
