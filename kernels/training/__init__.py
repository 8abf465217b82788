"""Training through quantization with the gradients of PyTorch and JAX: on CPU arrays, every product an instruction of a GPU."""
