"""Membership: finding neighbours, meeting them, and noticing that they are gone."""
