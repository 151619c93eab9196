"""Create the tables, and declare the Django models that read them."""

from django.db import migrations, models

from dramatiq_joblog.django.migrating import migration


def _unmanaged(name: str, *permissions: str) -> migrations.CreateModel:
    """Declare a model to Django, without managing its table."""
    options = {
        "managed": False,
        "db_table": f"joblog_{name.lower()}",
        "default_permissions": permissions,
    }
    if name == "Job":
        options["ordering"] = ("-created_at", "-id")
    return migrations.CreateModel(name, [("id", models.BigAutoField(primary_key=True))], options)


Migration = migration(state=[_unmanaged("Failure", "view"), _unmanaged("Job", "view", "change")])
