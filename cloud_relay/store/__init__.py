"""The relay's store of records."""
