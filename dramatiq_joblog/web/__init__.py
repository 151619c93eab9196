"""The web page: what the log knows, for people; and what they may do about it.

``status()`` is for an application's own front end: how one job is doing, and nothing else.
``export()`` writes the page as static files, with the log as it is now.

Nothing here asks the database what a user's code could not ask through ``JobLog``.
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
