"""The example: financial data imports, reconciliations and verifications of several users.

``dramatiq example_app`` is a plain worker of it; ``python -m example_app`` is the whole story.
"""

try:
    from .jobs import broker, joblog
except ModuleNotFoundError as e:
    if (e.name or "").split(".")[0] in ("dramatiq_joblog", "example_app"):
        raise
    raise SystemExit(
        f"The example needs {e.name}, which is not installed: "
        "pip install 'dramatiq-joblog[example]'"
    ) from None

__all__ = ["broker", "joblog"]
