"""Deltas: a file of a release from an earlier one, for a fraction of its bytes. They need the extra
``meshnode[releases]``.

``make_delta`` is used where releases are published, ``apply_delta`` where they are installed. Whoever applies a delta
checks the digest of the file that it made.
"""

from meshnode.models.deltas.applying import apply_delta
from meshnode.models.deltas.making import make_delta

__all__ = ["apply_delta", "make_delta"]
