"""Receipts: what a node signs for the records of a batch, and what proves one of them alone."""
