"""Datagrams to all neighbours who listen, in a running node."""
