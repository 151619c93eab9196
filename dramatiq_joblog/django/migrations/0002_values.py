"""Add the column `user_is_text`."""

from dramatiq_joblog.django.migrating import migration

Migration = migration(after="0001_initial")
