"""Support for mounts under a root path that a proxy strips."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send


class WholePath:
    """A middleware that makes each path begin with its root path, as ASGI requires.

    If a proxy strips a prefix that the outer application declares, the path has only the prefix
    of the mount: no route would match, and links would have the prefix twice.

    Parameters:
      app: The wrapped application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with its complete path."""
        root, outer = scope.get("root_path", ""), scope.get("app_root_path", "")
        path, mount = scope.get("path", ""), root.removeprefix(outer)
        if outer and mount and path.startswith(mount) and not path.startswith(root):
            scope = {**scope, "path": outer + path}
        await self._app(scope, receive, send)
