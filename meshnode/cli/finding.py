"""What a check of the doctor has found."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check."""

    status: Literal["ok", "warn", "fail"]
    """``warn``: the node works, but not as well as it could, or not for long."""
    check: str
    message: str
