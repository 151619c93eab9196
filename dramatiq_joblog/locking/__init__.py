"""Who holds a key: critical sections, unique keys, rate limits, and manual locks."""
