"""The demonstration of releases: a good model reaches every node, and a bad one is taken back, with the relay gone."""
