"""The start and end of DVC and its stages: one run at a time, and no half-written result after a failure."""
