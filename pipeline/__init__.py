"""One experiment, told seven ways."""

import os

# Before NumPy is imported. OpenBLAS's idle threads spin for 2²⁶ cycles, some 30 ms, before they sleep, and take a core
# from whatever comes next, torch's threads above all; 2²⁰ cycles, 0.4 ms, still span the gaps between products.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "20")
