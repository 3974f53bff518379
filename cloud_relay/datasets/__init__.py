"""Saved datasets: questions with versions, each of which says exactly which records it has."""
