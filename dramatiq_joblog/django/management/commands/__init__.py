"""The command ``joblog``."""
