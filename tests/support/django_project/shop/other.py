"""Settings of another project: each setting that is not the usual one.

SHOP_TWO has the log in a database of its own, and a router that knows nothing of it.
"""

import os

from shop.settings import *  # noqa: F403
from shop.settings import BASE_DIR, DATABASES, INSTALLED_APPS, JOBLOG

USE_TZ = False
AUTH_USER_MODEL = "people.Person"
INSTALLED_APPS += ["people"]
ROOT_URLCONF = "shop.other_urls"
DATABASES["default"]["ATOMIC_REQUESTS"] = True
if os.environ.get("SHOP_TWO"):
    DATABASES["jobs"] = DATABASES["default"] | {
        "NAME": BASE_DIR / "jobs.sqlite3",
        "TEST": {"NAME": BASE_DIR / "test_jobs.sqlite3"},
    }
    JOBLOG["DATABASE"] = "jobs"
    DATABASE_ROUTERS = ["shop.other.Router"]


class Router:
    """Has everything in the first database but the log."""

    def db_for_read(self, model, **hints):
        """Return the first."""
        return "default"

    db_for_write = db_for_read

    def allow_migrate(self, db, app_label, **hints):
        """Have the log's tables in the second database alone."""
        return (db == "jobs") == (app_label == "joblog")
