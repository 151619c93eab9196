"""The example: financial data imports, reconciliations and verifications of several users.

``dramatiq example_app`` is a plain worker of it; ``python -m example_app`` is the whole story.
"""

from dramatiq_joblog import ConfigurationError

try:
    from .jobs import broker, joblog
except ModuleNotFoundError as e:
    if (e.name or "").startswith("example_app"):
        raise
    raise SystemExit(
        f"The example needs {e.name}, which is not installed: "
        "pip install 'dramatiq-joblog[example]'"
    ) from None
except ConfigurationError as e:
    raise SystemExit(f"JOBLOG_DATABASE: {e}") from None

__all__ = ["broker", "joblog"]
