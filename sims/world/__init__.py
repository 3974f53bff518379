"""A scenario come to life: traffic, models, records, a relay, and faults."""
