"""One version."""
