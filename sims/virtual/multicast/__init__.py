"""Multicast datagrams of simulated nodes."""
