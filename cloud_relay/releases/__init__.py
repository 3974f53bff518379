"""Releases at the relay: the repository of signed metadata, the chunks of the files, and the answers to nodes."""
