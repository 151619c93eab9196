"""Reports on order: an example of an async application with a job log."""
