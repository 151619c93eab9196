"""How job events become committed rows."""
