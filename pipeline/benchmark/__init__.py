"""How long a step takes, and what may be said of it."""
