"""What is measured for the developers, and no part of the pipeline."""

import pipeline  # noqa: F401 (before NumPy: it sets how long OpenBLAS's idle threads spin)
