"""What holds for every test: Hypothesis judges outcomes, never speed, and prints how to replay a failure."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "house",
    deadline=None,  # the machine is shared: a slow example says nothing about the code
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("house")
