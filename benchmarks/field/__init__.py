"""Kernels from packages of PyPI that nobody here wrote, compiled, against float64: their calls, the tests' rows and the table of times."""
