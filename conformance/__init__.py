"""What meets hardware: files of recorded results, recording, replay, comparison, identification."""
