"""Roads: where the nodes of a scenario are, and how they move."""
