"""Discriminating operands, models with every number free, and wrong models."""
