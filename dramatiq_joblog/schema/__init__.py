"""The tables of a log: fields, indexes, scopes and migrations."""
