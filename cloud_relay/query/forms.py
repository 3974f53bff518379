"""Records as programs get them: one object or row, with the same names everywhere."""

from typing import Any

import msgspec

from cloud_relay.query.searching import StoredRecord
from meshnode.readings.value_json import value_form
from protocols.base.errors import MeshError
from protocols.wire.parcels import decode_untrusted_reading


def record_form(record: StoredRecord) -> dict[str, Any]:
    """The record as a JSON object. Its value is whole: see :mod:`meshnode.http.reading_json` for what JSON lacks."""
    return record.fields | {
        "value": value_form(value_of(record)),
        "lineage": msgspec.Raw(record.fields["lineage"].encode()),
    }


def value_of(record: StoredRecord) -> Any:
    """The value as its node sent it. If its bytes can't be read any more, what the store noted of it."""
    try:
        return decode_untrusted_reading(record.encoded).value
    except MeshError:
        return msgspec.json.decode(record.fields["value"])
