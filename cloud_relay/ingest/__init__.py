"""The way of records into the store of the relay."""
