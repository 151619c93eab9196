"""The dashboard as a view, behind Django's own login, under ASGI, WSGI and ``runserver``."""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.contrib.auth import REDIRECT_FIELD_NAME
from django.contrib.auth.views import redirect_to_login
from django.core.exceptions import ImproperlyConfigured
from django.shortcuts import resolve_url
from django.urls import NoReverseMatch, Resolver404, resolve, reverse
from django.views.decorators.csrf import csrf_exempt
from starlette.responses import RedirectResponse

from dramatiq_joblog.web import dashboard

from .bridge import Bridge
from .conf import discover_actors, get_joblog, setting

if TYPE_CHECKING:
    from django.http import HttpRequest, HttpResponse
    from starlette.requests import Request

#: The key of the scope under which Django's decision is passed on.
_DECISION = "dramatiq_joblog.django.decision"


@csrf_exempt  # The dashboard's forms have their own token.
def page(request: HttpRequest, path: str = "") -> HttpResponse:
    """Answer with the dashboard, if Django's user may see it.

    Staff users may look with the permission ``joblog.view_job``, and act with
    ``joblog.change_job``; superusers have both.  Anonymous visitors are redirected to sign in.
    """
    return _page().answer(request, path, **{_DECISION: _decision(request)})


@functools.cache
def _page() -> Bridge:
    discover_actors()
    options = {"time_zone": settings.TIME_ZONE or "UTC"} | setting().get("PAGE", {})
    return Bridge(dashboard(get_joblog(), authorize=_decided, **options))


def _decided(request: Request) -> Any:
    return request.scope[_DECISION]


def _decision(request: HttpRequest) -> Any:
    """Return a level and the user's name; or the address to sign in, or None."""
    user = getattr(request, "user", None)
    if user is None:
        raise ImproperlyConfigured(
            "the dashboard needs to know the user: add "
            "'django.contrib.auth.middleware.AuthenticationMiddleware' to MIDDLEWARE"
        )
    if not user.is_authenticated:
        address = redirect_to_login(request.get_full_path(), _login_url(), REDIRECT_FIELD_NAME).url
        return RedirectResponse(address, 303)
    if not user.is_staff:
        return None
    if user.has_perm("joblog.change_job"):
        return "all", user.get_username()
    return ("read-only", user.get_username()) if user.has_perm("joblog.view_job") else None


def _login_url() -> str:
    """Return the address to sign in: ``LOGIN_URL``, or the admin's if that does not exist."""
    address: str = resolve_url(settings.LOGIN_URL)
    try:
        resolve(address)
    except Resolver404:
        with contextlib.suppress(NoReverseMatch):
            address = reverse("admin:login")
    return address
