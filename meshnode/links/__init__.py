"""Links, exchanges and discovery: everything of a node that touches the network.

This package imports nothing else of ``meshnode``: the relay uses it too.
"""
