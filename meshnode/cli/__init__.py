"""The ``meshnode`` command: one module for each family of commands. ``docs/reference/commands.md`` describes them."""
