"""Where the relay sends records on to, and how far each of these places has come."""
