"""Recorded dot products, their replay, the support table and the command line."""
