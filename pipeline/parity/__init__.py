"""How close an implementation is to the float64 reference, and whether that is close enough."""
