"""Readings of the last hours, kept on the node's disk."""
