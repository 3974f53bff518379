"""Finding the cheapest plan: fewer choices, lower bounds, and a best-first search with them."""
