"""The dashboard: what is in the log, and actions on it.

``status()`` is for an application's own front end: the progress of one job, and nothing else.
``export()`` writes the dashboard as static files, with the current state of the log.

It uses only queries that a user's code could also make through ``JobLog``.
"""

try:
    from .app import dashboard
    from .export import export
    from .status import status
except ModuleNotFoundError as e:
    if e.name is None or e.name.partition(".")[0] not in {"jinja2", "markupsafe", "starlette"}:
        raise
    raise ModuleNotFoundError(
        f"the web page needs {e.name}, which is not installed: pip install 'dramatiq-joblog[web]'",
        name=e.name,
    ) from e

__all__ = ["dashboard", "export", "status"]
