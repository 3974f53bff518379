"""Releases of models on a node: what is kept, who is trusted, and how a model is exchanged for a newer one."""
