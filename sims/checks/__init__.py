"""Checks: promises of the project that are judged while a simulation runs."""
