"""Runs done again, and runs exported."""
