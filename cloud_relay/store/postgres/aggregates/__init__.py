"""Kept aggregates in a store in PostgreSQL."""
