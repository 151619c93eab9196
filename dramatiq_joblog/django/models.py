"""The log's jobs and failed runs as read-only Django models.

They are unmanaged: the log's own migrations make their tables.  An application's own job model
decides the names of its tables.
"""

from __future__ import annotations

from typing import Any

from django.db import models

from dramatiq_joblog.schema.fields import user_id_of
from dramatiq_joblog.states import State

from .conf import get_joblog
from .fields import DocumentField, InstantField


class LogQuerySet(models.QuerySet):
    """Rows of the log."""

    def for_user(self, user: Any) -> LogQuerySet:
        """Select the jobs of a user, given as a row or as its primary key."""
        rows: LogQuerySet = self.filter(user_id=str(user_id_of(user)))
        return rows


_Manager: Any = models.Manager.from_queryset(LogQuerySet)


class LogManager(_Manager):
    """Queries the log's database, whatever database routers say."""

    def get_queryset(self) -> LogQuerySet:
        """Return all rows."""
        alias = get_joblog().django_alias or "default"
        rows: LogQuerySet = super().get_queryset().using(alias)
        return rows


class ReadOnlyError(TypeError):
    """Raised when a row of the log would be changed through Django."""


class LogModel(models.Model):
    """A row of the log."""

    objects = LogManager()

    class Meta:
        abstract = True

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Refuse: only the log writes its rows.

        Raises:
          ReadOnlyError: Always.
        """
        raise ReadOnlyError(f"{type(self).__name__} rows are written only by the log")

    def delete(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse: retention deletes rows, with all that belongs to them.

        Raises:
          ReadOnlyError: Always.
        """
        raise ReadOnlyError(
            f"{type(self).__name__} rows are deleted only by the log: use joblog.prune()"
        )


class Job(LogModel):
    """One job; the fields are those of :class:`dramatiq_joblog.Job`."""

    id = models.BigAutoField(primary_key=True)
    jid = models.CharField(max_length=255, unique=True)
    actor = models.CharField(max_length=255)
    queue = models.CharField(max_length=255)
    job_type = models.CharField(max_length=255, null=True)
    user_id = models.CharField("user", max_length=255, null=True)
    state = models.CharField(max_length=16, choices=[(s.value, s.value) for s in State])
    attempt = models.IntegerField()
    max_retries = models.IntegerField(null=True)
    eta = InstantField(null=True)
    enqueued_at = InstantField(null=True)
    started_at = InstantField(null=True)
    finished_at = InstantField(null=True)
    created_at = InstantField("created")
    updated_at = InstantField()
    duration = models.BigIntegerField("milliseconds", null=True)
    queue_time = models.BigIntegerField(null=True)
    error_type = models.CharField("error", max_length=255, null=True)
    error_message = models.TextField(null=True)
    dead_reason = models.CharField(max_length=32, null=True)
    skip_reason = models.TextField(null=True)
    worker = models.CharField(max_length=255, null=True)
    args = DocumentField(null=True)
    kwargs = DocumentField(null=True)
    meta = DocumentField(null=True)
    progress = DocumentField(null=True)
    section = models.CharField(max_length=255, null=True)
    parent_jid = models.CharField(max_length=255, null=True)
    root_jid = models.CharField(max_length=255, null=True)
    replay_of = models.CharField(max_length=255, null=True)
    replayed_by = models.CharField(max_length=255, null=True)
    note = models.TextField(null=True)

    class Meta:
        managed = False
        db_table = "joblog_job"
        default_permissions = ("view", "change")
        ordering = ("-created_at", "-id")

    def __str__(self) -> str:
        return f"{self.actor} {self.jid}"

    @property
    def failures(self) -> LogQuerySet:
        """The runs that did not finish, oldest first."""
        rows: LogQuerySet = Failure.objects.filter(jid=self.jid).order_by("id")
        return rows


class Failure(LogModel):
    """One run that did not finish; the fields are those of :class:`dramatiq_joblog.Failure`."""

    id = models.BigAutoField(primary_key=True)
    jid = models.CharField(max_length=255)
    attempt = models.IntegerField()
    outcome = models.CharField(max_length=16)
    started_at = InstantField(null=True)
    finished_at = InstantField(null=True)
    duration = models.BigIntegerField("milliseconds", null=True)
    error_type = models.CharField("error", max_length=255, null=True)
    error_message = models.TextField(null=True)
    traceback = models.TextField(null=True)
    worker = models.CharField(max_length=255, null=True)

    class Meta:
        managed = False
        db_table = "joblog_failure"
        default_permissions = ("view",)

    def __str__(self) -> str:
        return f"{self.outcome} {self.jid}"
