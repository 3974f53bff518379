"""Rules of curation in files: how they are written, checked and compiled."""
