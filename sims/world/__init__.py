"""A scenario come to life: traffic, models, records, a relay, faults, and bugs planted for the checks to catch."""
