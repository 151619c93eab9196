"""Everything that uses Dramatiq's broker: messages, outcomes, acknowledgements, new runs."""
