"""Promises that are judged while a simulation runs."""
