"""Real nodes as processes, each in a network of its own, on an emulated radio. Linux, root."""
