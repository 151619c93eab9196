"""One command, which has all of the log's own."""
