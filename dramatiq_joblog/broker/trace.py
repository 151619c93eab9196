"""The trace of a job, if OpenTelemetry or Sentry is active; neither is imported."""

from __future__ import annotations

import sys
from typing import Any

from dramatiq.logging import get_logger


def current_trace_id() -> str | None:
    """Return the id of the trace that this is called in, 32 hexadecimal digits, or None.

    OpenTelemetry's comes first; Sentry's where a client is set up.
    """
    try:
        # Any: what others have imported, and we do not know.
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
        # Of a version that is not known, or only half imported: no job may fail of it.
        get_logger(__name__).debug("The trace of a job is not known: %s", e)
    return None
