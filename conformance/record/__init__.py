"""Running tensor-core instructions on a GPU, and keeping what came out: `mmabits record`.

Needs the extra `gpu` (`pip install 'mmabits[gpu]'`): NVRTC, which compiles without a GPU, and the driver's bindings.
"""
