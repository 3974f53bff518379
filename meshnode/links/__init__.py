"""Links, exchanges and discovery: everything of a node that touches the network."""
