"""What can be asked of a log beside its scopes, and how it is shown."""
