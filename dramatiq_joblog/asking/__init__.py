"""Waiting for jobs, following them, and queries from event loops."""
