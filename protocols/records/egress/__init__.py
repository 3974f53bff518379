"""Egress: what of a record may leave for the relay, and in which form."""
