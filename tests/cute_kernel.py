"""A kernel of CuTe DSL, whose functions must stand in a module that imports it."""

import cutlass
import numpy as np
from cutlass import cute
from cutlass.cute.runtime import make_ptr


@cute.kernel
def axpy(x: cute.Pointer, y: cute.Pointer, n: cutlass.Int32, a: cutlass.Float32):
    thread, _, _ = cute.arch.thread_idx()
    block, _, _ = cute.arch.block_idx()
    size, _, _ = cute.arch.block_dim()
    i = block * size + thread
    left, right = cute.make_tensor(x, cute.make_layout(n)), cute.make_tensor(y, cute.make_layout(n))
    if i < n:
        right[i] = a * left[i] + right[i]


@cute.jit
def launch(x: cute.Pointer, y: cute.Pointer, n: cutlass.Int32, a: cutlass.Float32):
    axpy(x, y, n, a).launch(grid=[4, 1, 1], block=[32, 1, 1])


def compiled_axpy():
    """Compile it, and leave the PTX where CUTE_DSL_DUMP_DIR says."""
    memory = np.zeros(128, np.float32)
    pointer = make_ptr(cutlass.Float32, memory.ctypes.data, cute.AddressSpace.gmem, assumed_align=16)
    return cute.compile(launch, pointer, pointer, cutlass.Int32(100), cutlass.Float32(2.0))
