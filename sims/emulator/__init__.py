"""Real nodes as processes, each in a network of its own, on an emulated radio. The emulator needs Linux and root."""
