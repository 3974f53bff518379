"""Inference: deciding where a request is computed, and answering it exactly once."""
