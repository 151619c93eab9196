"""What users and background tasks do to jobs: cancel, prune, audit, import, check."""
