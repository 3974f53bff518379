"""How a release comes to serve: staged, tried, run beside the one that serves, swapped, and the one before kept."""
