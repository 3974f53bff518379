"""Signed readings: who is the author of what a neighbour passed on."""
