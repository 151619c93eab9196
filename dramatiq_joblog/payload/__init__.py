"""What callers pass in, checked; what is stored: converted, shortened, redacted, encrypted."""
