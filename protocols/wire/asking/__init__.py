"""Questions of a node to the relay."""
