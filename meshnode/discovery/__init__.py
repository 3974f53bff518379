"""Finding neighbours on the local network, as a part of a node."""
