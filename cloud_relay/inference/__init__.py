"""Models that the relay computes for nodes."""
