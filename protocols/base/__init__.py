"""What everything else stands on: ids, keys, errors, bounds and time."""
