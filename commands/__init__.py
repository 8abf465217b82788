"""The command `mmabits`: one module a command, and the demonstrations."""
