"""The second app: what they buy, and the jobs of it."""
