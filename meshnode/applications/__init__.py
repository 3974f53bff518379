"""Applications that the node runs: processes with rights of their own, started again when they end."""
