"""The simulation harness: the very engine of ``protocols`` in virtual time."""
