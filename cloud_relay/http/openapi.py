"""The description of the API in OpenAPI 3.1. Parameters come from where they are read, so it can't lag behind."""

from typing import Any, Final

from cloud_relay.http.arrow_pages import MEDIA_TYPE as ARROW
from cloud_relay.http.parameters import name_in_path, parameter
from cloud_relay.query.aggregating import AGGREGATING, PERCENTILES
from cloud_relay.query.arrivals import STREAM_FILTERS
from cloud_relay.query.kept import KEPT_FILTERS, KEPT_STREAM_FILTERS
from cloud_relay.query.newest import NEWEST_FILTERS
from cloud_relay.query.searching import COLUMNS
from cloud_relay.query.selection import FILTERS, PAGING
from cloud_relay.query.series import CHARTING

_NEWEST: Final = (*NEWEST_FILTERS, "limit", "cursor")
_NULLABLE: Final = ("altitude_m", "heading_deg")
_TEXTS: Final = ("origin", "rule", "key", "sensing_origin", "sensor", "unit", "calibration")
_NUMBERS: Final = ("latitude_deg", "longitude_deg", "accuracy_m", "quality")


def described(version: str, *, is_open: bool = True) -> dict[str, Any]:
    """The description. ``version`` is that of the software. ``is_open``: whether everybody may ask."""
    problem = {"$ref": "#/components/responses/Problem"}

    def operation(
        summary: str, names: tuple[str, ...], answer: dict[str, Any], along: str = "record", **more: Any
    ) -> dict[str, Any]:
        return {
            "get": {
                **more,
                "summary": summary,
                "parameters": [parameter(name, along) for name in names],
                "responses": {"200": answer, "304": {"description": "As the client has it."}, "default": problem},
            }
        }

    page = {
        "description": "One page of records. Without a cursor it is the last.",
        "headers": {"Link": {"description": "The next page, rel=next.", "schema": {"type": "string"}}},
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Page"}}, ARROW: {}},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Records of the relay", "version": version},
        "paths": {
            "/v1/records": operation("Records, newest first.", (*FILTERS, *PAGING), page),
            "/v1/newest": operation("The newest record of each key, in the order of the keys.", _NEWEST, page, "key"),
            "/v1/aggregates": operation(
                "How many records there are in each group, and the mean, extremes and percentiles of their values.",
                (*FILTERS, *AGGREGATING),
                _object(),
            ),
            "/v1/series": operation(
                "The numbers of each key over time, in about as many points as a chart has room for.",
                (*FILTERS, *CHARTING),
                {
                    "description": "A series for each key and unit.",
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Series"}}},
                },
            ),
            "/v1/aggregates/kept": operation("What each kept aggregate is, and how far it is.", (), _object()),
            "/v1/aggregates/kept/{name}": {
                "parameters": [name_in_path()],
                **operation(
                    "The groups of a kept aggregate, a page at a time. One that it is not by can't be asked for.",
                    (*KEPT_FILTERS, *PAGING),
                    _object(),
                    "group",
                ),
            },
            "/v1/aggregates/kept/{name}/stream": {
                "parameters": [name_in_path()],
                **operation(
                    "Groups of a kept aggregate as they change, as server-sent events; goes on after a Last-Event-ID.",
                    KEPT_STREAM_FILTERS,
                    {"description": "Events group, dropped and ended.", "content": {"text/event-stream": {}}},
                ),
            },
            "/v1/stream": operation(
                "Records as they are stored, as server-sent events; goes on after a Last-Event-ID.",
                STREAM_FILTERS,
                {"description": "Events record, dropped and ended.", "content": {"text/event-stream": {}}},
            ),
            "/v1/statistics": operation("What the relay has counted; for operators.", (), _object()),
            "/metrics": operation(
                "Metrics for Prometheus, as text or OpenMetrics; for operators.",
                (),
                {
                    "description": "Text.",
                    "content": {"text/plain": {"schema": {"type": "string"}}, "application/openmetrics-text": {}},
                },
            ),
            "/v1/openapi.json": operation("This description.", (), _object(), security=[]),
            "/healthz": operation("Whether the server runs.", (), _object(), security=[]),
        },
        "components": {
            "schemas": {"Record": _record(), "Page": _page(), "Series": _series()},
            "responses": {
                "Problem": {
                    "description": "Problem details, RFC 9457.",
                    "content": {"application/problem+json": {"schema": {"type": "object"}}},
                }
            },
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "Made by 'cloud-relay token create'."},
                "certificate": {"type": "mutualTLS", "description": "Of the mesh, with the role tool."},
            },
        },
        "security": [] if is_open else [{"token": []}, {"certificate": []}],
    }


def _record() -> dict[str, Any]:
    properties: dict[str, Any] = {name: {"type": "integer"} for name in COLUMNS}
    properties |= {name: {"type": "string"} for name in _TEXTS}
    properties |= {name: {"type": "number"} for name in _NUMBERS}
    properties |= {name: {"type": ["number", "null"]} for name in _NULLABLE}
    properties |= {
        "value": {"description": "Any JSON; $float, $bytes, $time and $tensor are what JSON lacks."},
        "lineage": {"type": "array", "items": {"type": "string"}},
        "has_receipt": {"type": "boolean"},
    }
    return {"type": "object", "required": list(COLUMNS), "properties": properties}


def _page() -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["records", "cursor"],
        "properties": {
            "records": {"type": "array", "items": {"$ref": "#/components/schemas/Record"}},
            "cursor": {"type": ["string", "null"]},
            "note": {"type": "string", "description": "Why there can be nothing."},
        },
    }


def _series() -> dict[str, Any]:
    number = {"type": "number"}
    point = {
        "type": "object",
        "required": ["bucket_utc_ns", "records", "numbers"],
        "properties": {
            "bucket_utc_ns": {"type": "integer"},
            "records": {"type": "integer"},
            "numbers": {"type": "integer"},
            **dict.fromkeys(("min", "mean", "max", *(f"p{share}" for share in PERCENTILES)), number),
        },
    }
    one = {
        "type": "object",
        "required": ["key", "unit", "points"],
        "properties": {
            "key": {"type": "string"},
            "unit": {"type": "string"},
            "points": {"type": "array", "items": point},
        },
    }
    return {
        "type": "object",
        "required": ["span_ns", "series"],
        "properties": {
            "span_ns": {"type": ["integer", "null"]},
            "series": {"type": "array", "items": one},
            "note": {"type": "string"},
        },
    }


def _object() -> dict[str, Any]:
    return {"description": "An object.", "content": {"application/json": {"schema": {"type": "object"}}}}
