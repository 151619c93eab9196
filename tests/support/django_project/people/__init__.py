"""A user model of the project's own."""
