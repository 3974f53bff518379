"""The relay's store."""
