"""One experiment, told seven ways."""

import os

# Before NumPy is imported. OpenBLAS's idle threads spin for 2²⁶ cycles, some 30 ms, before they sleep, and take a core
# from whatever comes next, torch's threads above all; 2²⁰ cycles, 0.4 ms, still span the gaps between products.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "20")

# Before any framework starts: cuda:N is the GPU that nvidia-smi and environment.json call N, not the N-th fastest.
os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
