"""What rules that derive readings from readings have in common, and the simplest of them."""
