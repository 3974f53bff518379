"""One datagram for all neighbours who listen, in place of one frame for each."""
