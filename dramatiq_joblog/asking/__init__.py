"""Asking for jobs from outside of them: waiting, following, and from event loops."""
