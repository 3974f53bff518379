"""Inference on a node: the models that it runs, and what callers get back."""
