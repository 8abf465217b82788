"""The schemes of mmabits.kernels.schemes as CUDA C++, built as the libraries' kernels are, without headers: NVRTC alone compiles them.

Each launcher runs its kernel on this machine's CPU by `mmabits.compile_cuda`; the sources compile unchanged for their GPUs.
"""
