"""The ``meshsim`` command: one module for each family of commands."""
