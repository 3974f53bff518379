"""Nodes in virtual time: the driver, its pipes and connections."""
