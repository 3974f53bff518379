"""Runs: one, many side by side, repeated from a file, or shrunk to what makes them fail."""
