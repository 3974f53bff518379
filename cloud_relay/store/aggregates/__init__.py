"""The tables of kept aggregates in the store of SQLite, and who writes them."""
