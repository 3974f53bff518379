"""Multicast on the wire: frames between two neighbours, and datagrams to all of them."""
