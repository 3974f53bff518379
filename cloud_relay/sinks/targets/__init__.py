"""The kinds of places that records are sent on to, one module each."""
