"""Inference: where a request is computed, and that it is answered exactly once."""
