"""What of a message, an error or a text may be stored: made fit, redacted, encrypted."""
