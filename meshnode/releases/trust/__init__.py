"""Which releases a node may believe: a bundle of metadata against the keys that it trusts (docs/adr/0032).

``Trust`` keeps what was taken on disk; :mod:`~.checking` checks a bundle. It and what it stands on are the
only modules of a node that import python-tuf, when the first bundle is checked.
"""

from meshnode.releases.trust.keeping import Trust

__all__ = ["Trust"]
