"""Which releases a node may believe: a bundle of metadata against the keys that it trusts (docs/adr/0032).

``Trust`` keeps what was taken on disk; :mod:`~.checking` checks a bundle, and is the only module of a node that imports
python-tuf, when the first bundle is checked.
"""

from meshnode.releases.trust.keeping import Trust

__all__ = ["Trust"]
