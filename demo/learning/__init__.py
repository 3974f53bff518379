"""The demonstration of learning: hotspots of hard braking, learned at the relay, and served at the roadside."""
