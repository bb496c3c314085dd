"""The report: one self-contained page of results."""
