"""The table of customers."""

from django.db import migrations, models


class Migration(migrations.Migration):
    """The first version."""

    initial = True
    operations = [
        migrations.CreateModel(
            "Customer",
            [
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("name", models.CharField(max_length=100)),
            ],
        )
    ]
