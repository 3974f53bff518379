"""Scenario files: their structs, reading and writing them, and what is wrong with a bad one."""
