"""Promises that are judged while a simulation runs, and deliberate bugs that each of them catches."""
