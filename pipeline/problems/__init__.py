"""The two problems: for each its equations, shapes, random data and float64 reference, stated here and nowhere else."""
