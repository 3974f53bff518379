"""What mypyc reads when it compiles the hot modules (docs/adr/0016). It means nothing to the interpreter."""

from collections.abc import Callable
from typing import TYPE_CHECKING

__all__ = ["mypyc_attr"]

if TYPE_CHECKING:
    from mypy_extensions import mypyc_attr
else:

    def mypyc_attr(**_: bool) -> Callable[[type], type]:
        """Return the class as it is. The package that defines the real one is not needed to run a node."""
        return lambda cls: cls
