"""Batches that a neighbour carries: their frames, and the bytes that are sealed and signed in them."""
