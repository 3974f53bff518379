"""Questions to a store in PostgreSQL."""
