"""Saying to people that jobs need them: rules, what is known of each, and who is notified."""
