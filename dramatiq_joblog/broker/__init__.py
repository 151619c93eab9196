"""All that touches Dramatiq's broker: messages, verdicts, acknowledgements, new runs."""
