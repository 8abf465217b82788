"""The machine: compiled kernels (PTX) run on a CPU, a warp of 32 lanes as one vector, with the engine for their matrix products.

`ptx` reads the text, `arranging` orders its blocks, `fusion` contracts it as ptxas does, `program` cuts it into segments, `warp` writes
a function of LLVM's for them with `elementwise`, `functions`, `memory`, `exchange` and `tensor`; `helpers` is what that code calls,
`hostcalls` what printf and assertions do, and `kernel` compiles and launches. `tensormemory` and `tcgen05` write what data-centre Blackwell
adds, `cells` and `tensorwork` are what that calls.
"""
