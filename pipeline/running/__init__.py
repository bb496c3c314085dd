"""How DVC and its stages start and end: one run at a time, and nothing half written after a failure."""
