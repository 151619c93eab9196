"""What is stored of messages, errors and texts: converted, shortened, redacted, encrypted."""
