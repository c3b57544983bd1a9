"""Files: written durably, read safely, locked against other processes."""
