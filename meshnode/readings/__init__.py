"""Publishers and subscriptions of the Python API."""
