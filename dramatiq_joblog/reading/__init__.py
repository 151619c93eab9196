"""Queries besides the scopes, and how their results are shown."""
