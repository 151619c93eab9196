"""Queries beyond the scopes, and the display of their results."""
