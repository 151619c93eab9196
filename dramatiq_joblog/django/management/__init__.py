"""The log's commands in `manage.py`."""
