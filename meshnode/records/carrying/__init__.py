"""Records that a neighbour carries to the relay: what a node seals for others, and what it carries for them."""
