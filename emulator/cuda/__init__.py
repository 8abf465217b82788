"""CUDA C++ and PTX on this machine: `compile_cuda` and `load_ptx` make modules, whose kernels are launched with arrays.

`nvrtc` compiles, `names` reads C++ names, `arguments` turns what a launch is given into the bytes of parameters, `maps` describes tensors
to TMA, `modules` holds modules and kernels. The machine (mmabits.emulator.machine) runs them.
"""
