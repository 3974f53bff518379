"""The demonstration: a whole mesh on this host, on real input, with accidents."""
