"""One experiment, told seven ways."""

import os

# Set before NumPy is imported. By default OpenBLAS's idle threads spin for 2²⁶ cycles, about 30 ms, before they sleep.
# Meanwhile they take a core from other work, such as torch's threads. 2²⁰ cycles, 0.4 ms, are enough for the gaps
# between products.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "20")

# Set before any framework starts. It makes cuda:N the GPU that nvidia-smi and environment.json call N, not the N-th
# fastest.
os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
