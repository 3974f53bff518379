"""Gossip: signed entries that spread to every node, however far away."""
