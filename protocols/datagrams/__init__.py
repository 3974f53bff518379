"""Datagrams to all neighbours who listen, as part of an engine."""
