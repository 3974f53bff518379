"""Records that a neighbour carries to the relay: who is given what, who carries how much, and when that ends."""
