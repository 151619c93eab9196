"""What people and upkeep do to jobs: cancel, prune, audit, import, examine."""
