"""A store in PostgreSQL, for several relays behind one address."""
