"""How long a step takes: measurements, ratios and their intervals."""
