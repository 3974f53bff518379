"""Readings: who wants which, who gets them, and what happened to the rest."""
