"""A node's HTTP API on loopback: the server, what all its routes share, and the routes of the node itself."""
