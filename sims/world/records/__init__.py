"""Records of a simulation: which nodes make any, where they wait, how they travel, and who stores them."""
