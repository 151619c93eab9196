"""Connections, URLs, statements and dialects; nothing about jobs."""
