"""``python -m benchmarks.mqtt``: a node that gives to mosquitto, which goes away for a while.

The node publishes two series ten times a second each: one lives for ever, and one lives for a second. The broker is
stopped, stays away for ``--away-s``, and is started again. Another client with a session of its own takes both. Then

- each reading that lives for ever has come once, with quality of service 2;
- of the other series, nothing came that was published more than its lifespan before the broker was back, and each that
  was published while the broker was there came once.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

import meshnode
from benchmarks.lone_node import write_lone_node
from benchmarks.mosquitto import MOSQUITTO, Mosquitto
from meshnode.mqtt.delivered import Delivered

LIFESPAN_S: Final = 1.0
_SEEN_S: Final = 0.5
"""How much later than the node this program may see that the broker is back."""
_SETTLE_S: Final = 60.0
_BROKER: Final = """
[[mqtt]]
name = "box"
host = "127.0.0.1"
port = {port}
keepalive_s = 2
give = [
  {{ keys = "veh/*/lasting", topic = "lasting", format = "value", qos = 2 }},
  {{ keys = "veh/*/passing", topic = "passing", format = "value", qos = 2 }},
]
"""


class Taker:
    """A client of the broker that takes both series, and notes what comes, without what mosquitto gives again."""

    def __init__(self, port: int) -> None:
        self.came: dict[str, Counter[int]] = {"lasting": Counter(), "passing": Counter()}
        self.client = paho.Client(CallbackAPIVersion.VERSION2, "taker", clean_session=False)
        self.client.on_connect = lambda client, *_: client.subscribe([("lasting", 2), ("passing", 2)])
        self.client.on_message = self._take
        self._delivered = Delivered()
        self.client.reconnect_delay_set(1, 1)
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()

    def _take(self, _client: object, _data: object, message: Any) -> None:
        if not self._delivered.is_repeated(message.mid, message.dup, message.topic, message.payload):
            self.came[message.topic].update([int(message.payload)])

    def close(self) -> None:
        """Leave."""
        self.client.disconnect()
        self.client.loop_stop()


def judged(
    taker: Taker, published_s: list[float], away_s: tuple[float, float], reached: int
) -> tuple[dict[str, int], list[str]]:
    """Figures and what was wrong. ``published_s``: when each number was published; ``away_s``: from when to when the
    broker was away for the node; ``reached``: how many the node says were confirmed."""
    lasting, passing = taker.came["lasting"], taker.came["passing"]
    numbers = range(len(published_s))
    late = [n for n in passing if away_s[0] < published_s[n] < away_s[1] - LIFESPAN_S - _SEEN_S]
    there = [n for n in numbers if not away_s[0] - 1.0 < published_s[n] < away_s[1]]
    figures = {
        "published": len(numbers), "came": len(lasting), "confirmed": reached,
        "lost": sum(n not in lasting for n in numbers),
        "twice": sum(count > 1 for series in (lasting, passing) for count in series.values()),
        "expired_that_came": len(late), "passing_came": len(passing),
        "passing_lost_while_there": sum(n not in passing for n in there),
    }  # fmt: skip
    bad = ("lost", "twice", "expired_that_came", "passing_lost_while_there")
    return figures, [f"{name}: {figures[name]}" for name in bad if figures[name]]


async def run(folder: Path, away_s: float, rate_hz: float) -> tuple[dict[str, Any], list[str]]:
    """Figures, and what was wrong."""
    (folder / "broker").mkdir()
    broker = Mosquitto(folder / "broker")
    config = write_lone_node(folder, _BROKER.format(port=broker.port))
    broker.start()
    taker = Taker(broker.port)
    published_s: list[float] = []
    started_cpu_s = time.process_time()

    async def publish(node: Any, seconds: float) -> None:
        ends_s = time.monotonic() + seconds
        while time.monotonic() < ends_s:
            number = len(published_s)
            published_s.append(time.monotonic())
            node.publish("veh/veh-1/lasting", number)
            node.publish("veh/veh-1/passing", number, lifespan_ms=round(LIFESPAN_S * 1_000))
            await asyncio.sleep(1 / rate_hz)

    async def seen(node: Any, connected: int) -> float:
        ends_s = time.monotonic() + _SETTLE_S
        while node.statistics()["mqtt_connected"] != connected and time.monotonic() < ends_s:
            await publish(node, 0.02)
        return time.monotonic()

    try:
        async with meshnode.open(config) as node:
            await seen(node, 1)
            await publish(node, 2.0)
            await asyncio.to_thread(broker.stop)
            gone_s = await seen(node, 0)
            await publish(node, away_s)
            most_waiting = node.statistics()["mqtt_waiting"]
            await asyncio.to_thread(broker.start)
            back_s = await seen(node, 1)
            await publish(node, 2.0)
            ends_s = time.monotonic() + _SETTLE_S
            while len(taker.came["lasting"]) < len(published_s) and time.monotonic() < ends_s:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
            await asyncio.sleep(1.0)  # for what comes twice
            counted = node.statistics()
    finally:
        taker.close()
        broker.stop()
    figures, wrong = judged(taker, published_s, (gone_s, back_s), counted.get("mqtt_confirmed", 0))
    figures["expired"] = counted.get("mqtt_expired", 0)
    return {
        **figures,
        "away_s": round(back_s - gone_s, 1),
        "most_waiting": most_waiting,
        "processor_s": round(time.process_time() - started_cpu_s, 2),
    }, wrong


def main() -> int:
    """The exit status: 0 if all was right, 1 if not, 2 without mosquitto."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.mqtt", description=__doc__)
    options.add_argument("--away-s", type=float, default=60.0, help="default: %(default)s")
    options.add_argument("--rate-hz", type=float, default=10.0, help="default: %(default)s")
    chosen = options.parse_args()
    if MOSQUITTO is None:
        print("mosquitto is not installed", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="meshnode-benchmark-") as folder:
        figures, wrong = asyncio.run(run(Path(folder), chosen.away_s, chosen.rate_hz))
    print(json.dumps(figures, indent=2))
    for text in wrong:
        print(f"WRONG {text}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
