"""Gossip: signed entries that spread from neighbour to neighbour to every node."""
