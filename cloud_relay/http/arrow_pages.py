"""Pages of records as a stream of Arrow (IPC), for who asks for it by ``Accept``: the columns of an export, with types.

The next page is in the header ``Link`` as for JSON, and its cursor in the metadata of the schema too.
"""

import io
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from cloud_relay.export.columns import EXPORTED, row_of_record
from cloud_relay.export.opening import opener
from cloud_relay.http.accepting import is_named, weight_of
from cloud_relay.http.problems import HttpProblem
from cloud_relay.query.searching import RecordPage
from protocols.base.errors import ConfigError

MEDIA_TYPE: Final = "application/vnd.apache.arrow.stream"
_JSON: Final = "application/json"


def prefers_arrow(request: Request) -> bool:
    """Whether the client would rather have Arrow than JSON: it names Arrow and wants it as much, or takes no JSON."""
    accepted = ",".join(request.headers.getlist("accept"))
    arrow, as_json = weight_of(accepted, MEDIA_TYPE), weight_of(accepted, _JSON)
    return arrow > 0 and (as_json == 0 or (is_named(accepted, MEDIA_TYPE) and arrow >= as_json))


def arrow_response(page: RecordPage, given: dict[str, str], headers: dict[str, str]) -> Response:
    """A page as a stream. ``given``: the question. :raises HttpProblem: the relay has no pyarrow."""
    about: dict[str, Any] = {"form": 1, "query": given, "cursor": page.cursor}
    try:
        opens = opener("arrows", 1, about, EXPORTED)
    except ConfigError as error:
        raise HttpProblem(
            406,
            "this relay has no pyarrow, which Arrow needs: ask for application/json, or have its operator "
            "run pip install 'meshnode[export]'",
        ) from error
    body = io.BytesIO()
    out = opens(body)
    for record in page.records:
        out.add(row_of_record(record))
    out.close()
    return Response(body.getvalue(), 200, headers, MEDIA_TYPE)
