"""The way of records into the relay."""
