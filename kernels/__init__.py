"""What software does around the instructions: quantization of operands."""
