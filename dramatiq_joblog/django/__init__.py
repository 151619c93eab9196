"""The Django app: settings, migrations, commands, dashboard and admin.

``INSTALLED_APPS += ["dramatiq_joblog.django"]``; nothing of it is imported by the rest of the
package, which does not need Django.
"""

from .conf import get_joblog
from .middleware import JobLogMiddleware

__all__ = ["JobLogMiddleware", "get_joblog"]
