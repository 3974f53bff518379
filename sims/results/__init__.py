"""What a run leaves behind: how it is recorded, saved, and compared."""
