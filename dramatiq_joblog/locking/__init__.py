"""Who holds a key: critical sections, uniqueness, and locks taken by hand."""
