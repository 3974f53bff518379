"""Types of fields that many frames share, with bounds that decoding checks, and the check of node ids."""

from typing import Annotated

from msgspec import Meta

from protocols.base import limits
from protocols.base.errors import InvalidName, RemoteProtocolError
from protocols.base.ids import node_id

Text = Annotated[str, Meta(max_length=limits.MAX_TEXT_CHARS)]

Key = Annotated[str, Meta(min_length=1, max_length=limits.MAX_KEY_BYTES)]

Id = Annotated[str, Meta(min_length=1, max_length=63)]

Count = Annotated[int, Meta(ge=0)]

U16 = Annotated[int, Meta(ge=0, le=65_535)]

Latitude = Annotated[float, Meta(ge=-90, le=90)]

Longitude = Annotated[float, Meta(ge=-180, le=180)]

NonNegative = Annotated[float, Meta(ge=0)]

Share = Annotated[float, Meta(ge=0, le=1)]

Digest = Annotated[str, Meta(pattern="^[0-9a-f]{64}$", max_length=64)]


def check_untrusted_id(text: str) -> None:
    """:raises RemoteProtocolError: when it is not the id of a node."""
    try:
        node_id(text)
    except InvalidName as error:
        raise RemoteProtocolError(str(error)) from error
