"""Values that JSON has no type for are shown where that is possible, or left out and counted; the stream goes on."""

import asyncio
import json
import urllib.request
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import msgspec
import pytest

import meshnode
from demo.processes import free_port
from meshnode.console.printing import value_text
from meshnode.http.guard import BadRequest
from meshnode.http.reading_json import parse_untrusted_publish
from meshnode.http.readings import _lines
from meshnode.readings.value_json import value_form
from protocols.wire.parcels import encode_reading
from tests.tools.mesh_fixture import House, Open, given_house, given_opened, wanted
from tests.tools.node_fixture import meshnode as command
from tests.tools.relay_fixture import RelayInProcess, batch, given_relay, reading

__all__ = ["given_house", "given_opened", "given_relay"]
WHEN = datetime(2026, 11, 29, 5, 27, 0, 123_456, tzinfo=UTC)
SHOWN = {"$time": "2026-11-29T05:27:00.123456Z"}


def lines(port: int, count: int) -> list[dict[str, Any]]:
    """What a stream gives, with ``count`` readings in it."""
    url = f"http://127.0.0.1:{port}/v1/readings?key=veh/**&count={count}&timeout_s=60"
    with urllib.request.urlopen(url, timeout=60) as response:
        return [json.loads(line) for line in response]


def drops(node: Any, reason: str) -> dict[str, int]:
    return {key: count for (_, key, why), count in node.drops() if why == reason}


@pytest.mark.processes
async def test_timestamp_of_a_neighbour_is_shown_everywhere_and_ends_no_stream(house: House, opened: Open) -> None:
    """It ended the stream and every later one, because the last known value comes first each time."""
    path = house.file("veh-1", mdns=False)
    path.write_text(path.read_text().replace("[http]\nenabled = false", f"[http]\nport = {free_port()}"))
    async with meshnode.open(path) as node:
        port = node.http_port
        assert port is not None
        author = await opened("veh-2", node.port)
        with node.subscribe("veh/**") as heard:
            await wanted(author, "veh/veh-2/at")
            author.publish("veh/veh-2/at", WHEN)
            author.publish("veh/veh-2/both", {"at": [WHEN], "n": float("nan")})
            author.publish("veh/veh-2/speed", 5)
            for _ in range(3):
                await heard.next(30)
        for _ in range(2):
            told = {line["key"]: line["value"] for line in await asyncio.to_thread(lines, port, 3)}
            assert told["veh/veh-2/at"] == SHOWN
            assert told["veh/veh-2/both"] == {"at": [SHOWN], "n": {"$float": "nan"}}
            assert told["veh/veh-2/speed"] == 5
        arguments = ("sub", "veh/**", "--http", f"127.0.0.1:{port}", "--count", "3", "--timeout", "60")
        ran = await asyncio.to_thread(command, *arguments)
        assert (ran.returncode, ran.stderr) == (0, "")
        assert "2026-11-29T05:27:00.123456Z" in ran.stdout
        async with meshnode.connect(path.parent / "state" / "local.sock", name="looker") as application:
            seen = application.subscribe("veh/veh-2/at")
            assert (await seen.next(30)).value == WHEN


async def test_value_without_a_form_is_left_out_and_counted_and_the_stream_goes_on(opened: Open) -> None:
    """No value that travels is without a form today. One that a later version lets travel must not end the stream."""
    node = await opened("veh-3")
    with node.subscribe("veh/**") as heard:
        for number, value in enumerate((object(), {"deep": [object()]}, 2)):
            heard.take(msgspec.structs.replace(reading(number), key=f"veh/veh-3/{number}", value=value))
        told = [json.loads(line) async for line in _lines(heard, 1, 30.0, node)]
    assert told[:2] == [{"not_shown": 1}, {"not_shown": 2}]
    assert [line["value"] for line in told[2:]] == [2]
    assert drops(node, "not_shown") == {"veh/veh-3/0": 1, "veh/veh-3/1": 1}


def test_timestamp_survives_json_both_ways_and_a_wrong_one_is_refused() -> None:
    """What one node shows another program may publish."""
    east = datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=2)))
    for instant in (WHEN, east):
        body = json.dumps({"key": "a/b", "value": value_form(instant)}).encode()
        assert parse_untrusted_publish(body).value == instant
    for text in ("yesterday", "2026-01-01T00:00:00"):
        with pytest.raises(BadRequest, match=r"is not a time|has no offset"):
            parse_untrusted_publish(json.dumps({"key": "a/b", "value": {"$time": text}}).encode())
    assert value_text(SHOWN) == "2026-11-29T05:27:00.123456Z"


def test_timestamp_in_a_record_is_text_in_the_answers_of_the_relay(relay: RelayInProcess, tmp_path: Path) -> None:
    """A query over a year of records must not end at one of them."""
    odd = {"at": WHEN, "raw": b"\xff", "n": float("nan")}
    assert encode_reading(reading(1, value=odd)), "it travels"
    relay.send(batch(1, value=odd))
    (record,) = relay.records()
    assert record["value"] == {"at": "2026-11-29T05:27:00.123456Z", "raw": "/w==", "n": None}
    assert relay.account().adds_up
