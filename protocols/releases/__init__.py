"""Releases of models: which there are, how their bytes spread, and when they are installed."""
