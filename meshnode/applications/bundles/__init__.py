"""Bundles: rules, models and applications that belong together, in one file."""
