"""Totals of jobs by outcome and period."""
