"""Quantization schemes, each as a quantizer and a plain composition through `mmabits.gemm`."""
