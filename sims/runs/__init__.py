"""Runs: making one or many, repeating a saved one, and shrinking one that fails."""
