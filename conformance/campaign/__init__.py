"""A few minutes with a GPU: what to record first, one archive that is good at any moment, and what it teaches."""
