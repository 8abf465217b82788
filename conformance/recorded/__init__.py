"""What was recorded: files of four formats, each read into a `Recorded` (base.py) with its operands, results and provenance."""
