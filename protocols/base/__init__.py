"""What everything else is built on: ids, keys, errors, bounds and time."""
