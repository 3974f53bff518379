"""Models that are learned at the relay from its records, and what they are worth against those that serve."""
