"""The URLs of the dashboard: ``path("joblog/", include("dramatiq_joblog.django.urls"))``."""

from django.urls import re_path

from .views import page

app_name = "joblog"
urlpatterns = [re_path(r"^(?P<path>.*)$", page, name="page")]
