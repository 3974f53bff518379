"""Dividing a model into stages, and deciding which node computes each of them."""
