"""How events of jobs become committed rows."""
