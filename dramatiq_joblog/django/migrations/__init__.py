"""One for each version of the log's schema, under the same name."""
