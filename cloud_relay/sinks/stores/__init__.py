"""What sinks read of a store and keep beside it, in SQLite and in PostgreSQL."""
