"""JAX and Pallas kernels: they run on a GPU, and under `mmabits.emulate` on the CPU."""
