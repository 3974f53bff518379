"""Models of what carries frames: the air, wires, the cellular network, and TCP on top of them."""
