"""The addresses of the project."""

from django.conf import settings
from django.contrib import admin
from django.urls import include, path
from orders import views

urlpatterns = [
    path("admin/", admin.site.urls),
    path("orders/<int:customer>", views.order),
    path("jobs/<int:customer>", views.jobs),
    path("open", views.leave_open),
    path("pid", views.pid),
]
if "dramatiq_joblog.django" in settings.INSTALLED_APPS:
    urlpatterns.append(path("joblog/", include("dramatiq_joblog.django.urls")))
