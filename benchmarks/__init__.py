"""Speed of the emulator beside NumPy's matmul and beside other emulators. `python -m benchmarks --help`."""
