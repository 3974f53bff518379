"""Releases of a simulation: their publisher, and what stands for disk, signatures, installer and relay."""
