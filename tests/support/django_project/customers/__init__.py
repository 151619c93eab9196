"""The first app: who buys."""
