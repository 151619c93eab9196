"""The tests of a project whose settings are not the usual ones.

They are run by tests/django/test_other_projects.py, in processes of their own.
"""

import pytest
import shop.other_urls  # noqa: F401 - its actors are declared before the fixtures are made
from customers.models import Customer
from django.conf import settings
from django.contrib.auth import get_user_model
from django.db import connections
from orders.tasks import invoice

from dramatiq_joblog.django import get_joblog
from dramatiq_joblog.django.models import Job

pytestmark = pytest.mark.django_db(transaction=True, databases=list(settings.DATABASES))


def test_a_request_that_is_a_transaction(joblog_worker, client):
    """What a view sends in its transaction is logged, and finds what that wrote."""
    jid = client.get("/both").json()["jid"]
    [job] = joblog_worker.run()
    assert (jid, "finished") == (job.jid, job.state)


def test_where_the_tables_are():
    """The tables are in the database of the log, and in no other."""
    for alias in connections:
        names = connections[alias].introspection.table_names()
        assert ("joblog_job" in names) == (alias == get_joblog().django_alias)


@pytest.mark.parametrize("number", range(4))
def test_another_user_model(joblog_worker, client, number):
    """The admin and the page are for users of whatever model, and times are naive where all are."""
    root = get_user_model().objects.create_superuser("root", password="cobol")
    client.force_login(root)
    ada = Customer.objects.create(name="ada")
    invoice.send(ada.id, 9)
    [job] = joblog_worker.run()
    row = Job.objects.get()

    assert row.created_at.tzinfo is None
    assert 0 == get_joblog().jobs.for_user(root).count() == Job.objects.for_user(root).count()
    assert job.jid[:8] in client.get("/joblog/jobs").content.decode()
    listed = client.get("/admin/joblog/job/", {"created_at__gte": "2000-01-01 00:00:00"})
    assert "1 job" in listed.content.decode()
    assert 200 == client.get(f"/admin/joblog/job/{row.pk}/change/").status_code
    assert 200 == client.get(f"/admin/customers/customer/{ada.id}/change/").status_code
    form = {"csrf": client.cookies["joblog_csrf"].value, "jid": job.jid}
    assert 303 == client.post("/joblog/do/requeue", form).status_code
    assert ["root"] == [action.who for action in get_joblog().actions]
