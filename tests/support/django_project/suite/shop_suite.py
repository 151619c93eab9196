"""The project's own tests, under pytest-django and with the log's fixtures.

They are run by tests/django/test_project.py, in a process of their own.
"""

import io
import re

import dramatiq
import pytest
from customers.models import Customer
from django.contrib.auth.models import Permission, User
from django.core import checks
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import Client
from orders.tasks import invoice

from dramatiq_joblog import ConfigurationError
from dramatiq_joblog.django import get_joblog
from dramatiq_joblog.django.conf import make_joblog
from dramatiq_joblog.django.models import Job, ReadOnlyError

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def ada():
    return Customer.objects.create(name="ada")


@pytest.fixture
def staff():
    def make(name, *permissions, **facts):
        user = User.objects.create_user(name, password="cobol", **facts)
        user.user_permissions.add(*Permission.objects.filter(codename__in=permissions))
        client = Client()
        client.force_login(user)
        return client

    return make


def test_tables_of_the_test_database():
    """Django's test database has the log's tables, by Django's migrations."""
    there = set(connection.introspection.table_names())
    assert {"joblog_job", "joblog_failure", "joblog_deploy", "joblog_job_migration"} <= there


def test_nothing_is_missing_for_makemigrations():
    """The models of the app and its migrations agree."""
    call_command("makemigrations", check=True, dry_run=True, stdout=io.StringIO())


def test_a_view_that_sends(joblog_worker, client, ada):
    """A view sends a job, a worker runs it, and another view finds it."""
    client.get(f"/orders/{ada.id}")
    [job] = joblog_worker.run()

    assert ("finished", "invoice", ada.id) == (job.state, job.job_type, job.user_id)
    assert {"states": ["finished"]} == client.get(f"/jobs/{ada.id}").json()
    assert str(get_joblog().database.database) == str(connection.settings_dict["NAME"])


def test_a_test_finds_no_rows_of_another(joblog_worker, ada):
    """Each test begins with empty tables."""
    assert 0 == Job.objects.count()


def test_without_fixtures(client, ada):
    """A message that would be sent for real is refused."""
    with pytest.raises(ConfigurationError, match="ask for joblog_worker"):
        invoice.send(ada.id)


def test_models_read_what_the_log_wrote(joblog_worker, ada):
    """The models of Django have the rows, with instants and documents, and write nothing."""
    invoice.send(ada.id, amount=9)
    [ours] = joblog_worker.run()

    [job] = Job.objects.for_user(ada)
    assert ("dead", "ValueError", [ada.id], {"amount": 9}) == (
        job.state,
        job.error_type,
        job.args,
        job.kwargs,
    )
    assert ours.created_at == job.created_at
    assert [1, 2] == [run.attempt for run in job.failures]
    assert "too much" in job.failures.last().traceback
    assert 1 == Job.objects.filter(created_at__gte=ours.created_at).count()
    assert 0 == Job.objects.filter(created_at__gt=ours.created_at).count()
    for change in (job.save, job.delete):
        with pytest.raises(ReadOnlyError):
            change()


def test_the_admin(joblog_worker, staff, ada):
    """The admin lists jobs with filters and shows one, and lets nobody write."""
    invoice.send(ada.id, amount=9)
    joblog_worker.run()
    job = Job.objects.get()
    client = staff("grace", "view_job", "view_customer", is_staff=True)

    listed = client.get("/admin/joblog/job/", {"state": "dead", "job_type": "invoice"})
    assert "1 job" in listed.content.decode()
    today = client.get("/admin/joblog/job/", {"created_at__gte": "2000-01-01 00:00:00+00:00"})
    assert "1 job" in today.content.decode()
    assert "0 jobs" in client.get("/admin/joblog/job/", {"state": "finished"}).content.decode()
    assert "1 job" in client.get("/admin/joblog/job/", {"q": job.jid}).content.decode()
    shown = client.get(f"/admin/joblog/job/{job.pk}/change/").content.decode()
    assert "9 is too much" in shown
    assert f'href="/joblog/jobs/{job.jid}"' in shown
    assert "_save" not in shown
    assert 403 == client.get("/admin/joblog/job/add/").status_code
    assert 403 == client.post(f"/admin/joblog/job/{job.pk}/delete/").status_code
    of_ada = client.get(f"/admin/customers/customer/{ada.id}/change/").content.decode()
    assert re.search(r"<td>dead</td>.*ValueError", of_ada, re.DOTALL)


def test_the_page_is_behind_the_login(joblog_worker, staff, client, ada):
    """Strangers are sent to sign in; staff look by one permission, and act by another."""
    invoice.send(ada.id, amount=9)
    [job] = joblog_worker.run()

    away = client.get("/joblog/jobs?q=state:dead")
    assert (303, "/admin/login/?next=/joblog/jobs%3Fq%3Dstate%3Adead") == (
        away.status_code,
        away["Location"],
    )
    assert 301 == client.get("/joblog").status_code
    assert "ok" == client.get("/joblog/live").content.decode()
    assert 403 == staff("nobody").get("/joblog/").status_code
    assert 403 == staff("other", is_staff=True).get("/joblog/").status_code
    looking = staff("grace", "view_job", is_staff=True)
    page = looking.get("/joblog/jobs")
    assert 200 == page.status_code
    assert job.jid[:8] in page.content.decode()
    assert "default-src 'none'" in page["Content-Security-Policy"]
    asset = re.search(r'href="(/joblog/static/[^"]+\.css)"', page.content.decode())[1]
    assert "text/css" in client.get(asset)["Content-Type"]
    assert "Europe/Berlin" in looking.get("/joblog/zone").content.decode()
    assert job.jid == looking.get(f"/joblog/jobs/{job.jid}.json").json()["job"]["jid"]
    assert 404 == looking.get("/joblog/nothing").status_code

    token = looking.cookies["joblog_csrf"].value
    form = {"csrf": token, "jid": job.jid}
    assert 403 == looking.post("/joblog/do/requeue", form).status_code
    acting = staff("mira", "view_job", "change_job", is_staff=True)
    acting.get("/joblog/jobs")
    form["csrf"] = acting.cookies["joblog_csrf"].value
    assert 303 == acting.post("/joblog/do/requeue", form).status_code
    assert [("requeue", "mira")] == [(a.what, a.who) for a in get_joblog().actions]
    # A form of another site has no token.
    assert 403 == acting.post("/joblog/do/requeue", {"jid": job.jid}).status_code


def test_a_connection_that_a_view_left_open(joblog_broker, client):
    """What a request's thread opened of the log is given back as the request ends."""
    assert {"open": True} == client.get("/open").json()
    assert get_joblog().database.is_closed()


def test_the_command(joblog_worker, ada, capsys):
    """manage.py joblog is the whole terminal, with the project's actors."""
    invoice.send(ada.id, amount=9)
    [job] = joblog_worker.run()

    call_command("joblog", "list", "state:dead")
    assert job.jid[:8] in capsys.readouterr().out
    call_command("joblog", "requeue", job.jid, "--yes")
    assert ["dead", "enqueued"] == sorted(j.state for j in get_joblog().jobs)
    with pytest.raises(CommandError, match="no job"):
        call_command("joblog", "show", "nothing")


def test_the_checks(joblog_broker, settings):
    """What would make the log fail is said before it does."""

    def found(**kwargs):
        return [m.id for m in checks.run_checks(**kwargs) if m.id.startswith("joblog")]

    assert [] == found(include_deployment_checks=False)
    assert [] == found(databases=["default"])
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM joblog_job_migration WHERE name LIKE '0007%'")
    try:
        assert ["joblog.W003"] == found(databases=["default"])
    finally:
        call_command("joblog", "migrate")
    assert [] == found(databases=["default"])

    dramatiq.set_broker(dramatiq.brokers.stub.StubBroker())
    assert ["joblog.W002"] == found()
    dramatiq.set_broker(joblog_broker)


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("shop.nothing.joblog", "No module named 'shop.nothing'"),
        ("shop.settings.DEBUG", "bool, and not a JobLog"),
        ("customers.admin.Customer", "and not a JobLog"),
        ({"DATABASE": "defualt"}, "did you mean 'default'"),
        ({"OPTION": {}}, "did you mean 'OPTIONS'"),
        ({"OPTIONS": {"kepe": {}}}, "kepe"),
        ({"LOG": "shop.jobs.joblog", "OPTIONS": {}}, "leave out DATABASE"),
        (7, "give a dictionary"),
    ],
)
def test_a_setting_that_makes_no_sense(settings, setting, text):
    """What is wrong with the setting is said in a sentence."""
    settings.JOBLOG = setting
    with pytest.raises(ConfigurationError, match=text):
        make_joblog()


@pytest.mark.parametrize(
    ("options", "is_as"),
    [
        ({"model": "dramatiq_joblog.Job"}, lambda log: log.Job.__name__ == "Job"),
        ({"keep": {"finished": 1}, "redact": "math.sqrt"}, lambda log: log is not get_joblog()),
    ],
)
def test_options_by_a_dotted_path(settings, options, is_as):
    """Options of the log may be named by a dotted path."""
    settings.JOBLOG = {"OPTIONS": options}
    assert is_as(make_joblog())
