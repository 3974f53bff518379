"""Batches whose rows this node and its neighbours divide among themselves."""
