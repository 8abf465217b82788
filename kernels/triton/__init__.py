"""Triton kernels for general matrix products: they run on a GPU, and under `mmabits.emulate` on the CPU."""
