"""The trace ID of a job, if OpenTelemetry or Sentry is active; neither is imported."""

from __future__ import annotations

import sys
from typing import Any

from dramatiq.logging import get_logger


def current_trace_id() -> str | None:
    """Return the id of the current trace, 32 hexadecimal digits, or None.

    OpenTelemetry takes precedence; Sentry's is used if a client is configured.
    """
    try:
        # Any: a module imported by other code, if at all.
        telemetry: Any = sys.modules.get("opentelemetry.trace")
        if telemetry is not None:
            context = telemetry.get_current_span().get_span_context()
            if context.is_valid:
                return format(context.trace_id, "032x")
        sentry: Any = sys.modules.get("sentry_sdk")
        if sentry is not None and sentry.get_client().is_active():
            parent = sentry.get_traceparent()
            return None if parent is None else str(parent).split("-")[0]
    except Exception as e:  # noqa: BLE001
        # An unknown version, or one half imported, must not make a job fail.
        get_logger(__name__).debug("The trace of a job is not known: %s", e)
    return None
