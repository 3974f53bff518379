"""Older records of the relay's store, packed into compressed columns."""
