"""The whole node minus I/O: messages, state machines and bounds.

Nothing in this package reads a clock, opens a socket or a file, starts a thread or writes a log.
Time is an argument (integer nanoseconds), randomness an injected ``random.Random``.
A machine decides and returns effects; a driver (``meshnode`` in the world, ``sims`` in virtual time) performs them.
"""
