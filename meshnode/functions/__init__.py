"""Functions on events: programs that a node runs when a reading comes."""
