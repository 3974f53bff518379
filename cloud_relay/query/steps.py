"""How far a source of records came, whatever it is a part of."""

from typing import Final, NamedTuple

from cloud_relay.query.selection import Place


class Step(NamedTuple):
    """How far a source came. Steps compare by their place."""

    event_utc_ns: int
    origin: str
    sequence: int
    number: int
    """That of a record that was asked for; ``NOTHING``: there is none between the step before and this place."""

    @property
    def place(self) -> Place:
        """See :data:`~cloud_relay.query.selection.Place`."""
        return self.event_utc_ns, self.origin, self.sequence


NOTHING: Final = 0
OPENING: Final = -1
"""The number of a step that says only that nothing of its source comes before it. Nothing was looked at."""
LAST_NAME: Final = "\U0010ffff"
"""It comes after all names of nodes, and after all keys that begin with the same text."""
