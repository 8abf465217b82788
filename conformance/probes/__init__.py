"""Discriminating operands, wrong models, and which of the wrong models a set of dot products kills."""
