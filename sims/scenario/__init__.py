"""Scenario files: what they may say, and what is wrong with one."""
