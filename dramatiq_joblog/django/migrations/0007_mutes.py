"""Problems that people muted."""

from dramatiq_joblog.django.migrating import migration

Migration = migration(after="0006_searches")
