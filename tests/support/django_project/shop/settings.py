"""Settings as ``startproject`` writes them, with what the project adds.

SHOP_STEP says how far its move from AdminMiddleware has come: "before", "both" or "after".
"""

import json
import os
from pathlib import Path

BASE_DIR = Path(os.environ["SHOP_DIR"])
STEP = os.environ.get("SHOP_STEP", "after")
SECRET_KEY = "only for tests"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
DEBUG = True
ALLOWED_HOSTS = ["localhost", "127.0.0.1", "testserver"]
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "django_dramatiq",
    "customers",
    "orders",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
ROOT_URLCONF = "shop.urls"
WSGI_APPLICATION = "shop.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": BASE_DIR / "shop.sqlite3",
        "TEST": {"NAME": BASE_DIR / "test.sqlite3"},
    }
    | json.loads(os.environ.get("SHOP_DATABASE", "{}"))
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
STATIC_URL = "static/"
TIME_ZONE = "Europe/Berlin"
USE_TZ = True

DRAMATIQ_BROKER = {
    "BROKER": os.environ.get("SHOP_BROKER", "dramatiq.brokers.redis.RedisBroker"),
    "OPTIONS": json.loads(os.environ.get("SHOP_BROKER_OPTIONS", "{}")),
    "MIDDLEWARE": [
        "dramatiq.middleware.AgeLimit",
        "dramatiq.middleware.TimeLimit",
        "dramatiq.middleware.Retries",
        "django_dramatiq.middleware.AdminMiddleware",
        "django_dramatiq.middleware.DbConnectionsMiddleware",
    ],
}
_ADMIN = DRAMATIQ_BROKER["MIDDLEWARE"].index("django_dramatiq.middleware.AdminMiddleware")
if STEP != "before":
    # The first step: beside AdminMiddleware.
    INSTALLED_APPS.append("dramatiq_joblog.django")
    DRAMATIQ_BROKER["MIDDLEWARE"].insert(_ADMIN, "dramatiq_joblog.django.JobLogMiddleware")
    JOBLOG = {"OPTIONS": {"keep": {"finished": 7 * 86_400_000}}}
if STEP == "after":
    # The second step: in its place.
    del DRAMATIQ_BROKER["MIDDLEWARE"][_ADMIN + 1]
