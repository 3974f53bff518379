"""The whole node without its I/O: messages, state machines and bounds.

Nothing in this package reads a clock, opens a socket or a file, starts a thread or writes a log.
Time is an argument (integer nanoseconds), and randomness is an injected ``random.Random``.
A machine decides and returns effects; a driver (``meshnode`` on the road, ``sims`` in virtual time) performs them.
"""
