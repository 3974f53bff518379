"""The arithmetic of aggregates: which group a record belongs to, and what is kept of a group. It knows no database."""
