"""A customer's admin page shows their jobs."""

from django.conf import settings
from django.contrib import admin

from customers.models import Customer

if "dramatiq_joblog.django" in settings.INSTALLED_APPS:
    from dramatiq_joblog.django.admin import jobs_table
    from dramatiq_joblog.django.models import Job

    @admin.register(Customer)
    class CustomerAdmin(admin.ModelAdmin):
        """A customer, with the last ten jobs."""

        readonly_fields = ["jobs"]

        @admin.display(description="Last jobs")
        def jobs(self, customer):
            return jobs_table(Job.objects.for_user(customer)[:10])
