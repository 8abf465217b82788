"""The emulator: codecs, layouts, engines and the calls that run one instruction or a whole GEMM."""
