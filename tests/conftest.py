"""What holds for every test: Hypothesis judges outcomes, not speed, and says how to replay a failure; Ctrl-C works."""

import signal

from hypothesis import HealthCheck, settings

settings.register_profile(
    "house",
    deadline=None,  # the machine is shared: a slow example says nothing about the code
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("house")

# A shell that starts the tests in the background has them ignore interrupts, and so would every program they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
