"""A node's part in gossip: what it says about itself, how that is signed, and what is kept on disk."""
