"""The log in Django's admin, read-only, and a table of jobs for other admin pages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.urls import NoReverseMatch, reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString, mark_safe
from django.utils.timesince import timesince

from .models import Job

if TYPE_CHECKING:
    from collections.abc import Iterable

    from django.http import HttpRequest

_COLUMNS = ("state", "actor", "job_type", "user_id", "created_at", "duration", "error_type")


@admin.register(Job)
class JobAdmin(admin.ModelAdmin):
    """Jobs, newest first, read-only."""

    list_display = _COLUMNS
    list_filter = ("state", ("created_at", admin.DateFieldListFilter), "job_type", "queue", "actor")
    search_fields = ("=jid", "=user_id", "=error_type")
    search_help_text = "A whole jid, a user's id, or the class of an error"
    # Counting all jobs takes long in a large log.
    show_full_result_count = False
    fieldsets = (
        (None, {"fields": ("jid", "state", "actor", "job_type", "queue", "user_id", "on_page")}),
        ("Times", {"fields": ("created_at", "started_at", "finished_at", "eta", "duration")}),
        ("Sent", {"fields": ("args", "kwargs", "parent_jid", "replay_of", "replayed_by")}),
        ("Noted", {"fields": ("meta", "progress", "note")}),
        (
            "How it went",
            {"fields": ("attempt", "dead_reason", "skip_reason", "error_message", "runs")},
        ),
    )

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        """Make every field read-only."""
        return [*(field.name for field in Job._meta.fields), "on_page", "runs"]

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Refuse: jobs are made by sending messages."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Refuse: only the log writes its rows."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Refuse: retention deletes them."""
        return False

    @admin.display(description="Page")
    def on_page(self, job: Job) -> Any:
        """Link to the job in the dashboard, if that is mounted."""
        address = address_of(job)
        return "-" if address is None else format_html('<a href="{}">all of it</a>', address)

    @admin.display(description="Runs that failed")
    def runs(self, job: Job) -> Any:
        """Show the failed runs, with their tracebacks."""
        rows = (
            (run.attempt, run.outcome, run.finished_at, run.traceback or run.error_message or "")
            for run in job.failures[:20]
        )
        text = "<p>attempt {}: {}, {}</p><pre>{}</pre>"
        return format_html_join("", text, rows) or "none"


def address_of(job: Job) -> str | None:
    """Return the address of a job in the dashboard, if the project serves it."""
    try:
        address: str = reverse("joblog:page", kwargs={"path": f"jobs/{job.jid}"})
    except NoReverseMatch:
        return None
    return address


_HEAD = mark_safe("<tr><th>Job</th><th>State</th><th>Created</th><th>Error</th></tr>")


def jobs_table(jobs: Iterable[Job]) -> SafeString:
    """Return a table of jobs as HTML, for a read-only field of an admin page of your own.

    Example:
      >>> class CustomerAdmin(admin.ModelAdmin):
      ...     readonly_fields = ["jobs"]
      ...
      ...     def jobs(self, customer):
      ...         return jobs_table(Job.objects.for_user(customer)[:10])

    Parameters:
      jobs: The jobs, in order.
    """
    rows = format_html_join(
        "",
        '<tr><td><a href="{}">{}</a></td><td>{}</td><td>{} ago</td><td>{}</td></tr>',
        (
            (
                reverse("admin:joblog_job_change", args=[job.pk]),
                job.job_type or job.actor,
                job.state,
                timesince(job.created_at),
                job.error_type or "",
            )
            for job in jobs
        ),
    )
    if not rows:
        return mark_safe("none")
    text = "<table><thead>{}</thead><tbody>{}</tbody></table>"
    table: SafeString = format_html(text, _HEAD, rows)
    return table
