"""How many jobs ended how, counted by spans of time."""
