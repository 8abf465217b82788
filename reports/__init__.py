"""What is shown and read: pages, terminal tables, progress, failures in one line, files of others read with care."""
