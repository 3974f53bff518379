"""Records on a node: chosen, kept in an outbox on disk, and carried to the relay."""
