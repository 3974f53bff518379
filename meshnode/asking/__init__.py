"""Questions of a node to its relay, about places where it is not."""
