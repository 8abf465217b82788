"""The engine: a product as numbers, compiled, kept, and run on threads."""
