"""Mounts under a root path that a proxy removes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send


class WholePath:
    """The middleware that lets a path begin with its root path, as ASGI has it.

    Where a proxy cuts a prefix off, and the application around this one says which, the path has
    the prefix of the mount alone: no route would be found, and each link would have it twice.

    Parameters:
      app: What stands behind it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, with its whole path."""
        root, outer = scope.get("root_path", ""), scope.get("app_root_path", "")
        path, mount = scope.get("path", ""), root.removeprefix(outer)
        if outer and mount and path.startswith(mount) and not path.startswith(root):
            scope = {**scope, "path": outer + path}
        await self._app(scope, receive, send)
