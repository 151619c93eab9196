"""One migration for each version of the log's schema, with the same name."""
