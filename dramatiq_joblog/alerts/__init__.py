"""Alerts: rules, their state, and notices to people."""
