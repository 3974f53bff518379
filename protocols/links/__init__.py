"""What waits for a link to a neighbour, and how fast that link is."""
