"""The parity check: how far an implementation is from the float64 reference, and which line is wrong."""
