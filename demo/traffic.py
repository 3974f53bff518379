"""What goes to the relay: few records where there were many readings, and nothing that names a vehicle or its place.

Roadside units summarise the speeds that they hear. Vehicles send a speed a second, by a policy that leaves only the
cell of 100 m in which it was sensed, and a pseudonym.
"""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, Final

NAME: Final = "traffic"
WINDOW_S: Final = 5
RULES: Final = f"""\
[[rule]]
name = "{NAME}"
keys = "veh/*/speed"
source = "any"
unit = "m/s"
where = "quality > 0.0"
value = "value * 3.6"
window = {{ size_s = {WINDOW_S} }}
compute = ["count", "mean", "min", "max", "p95"]
output = {{ key = "rsu/{{node}}/traffic", unit = "km/h" }}
"""
SECTION: Final = '\n[rules]\nfiles = ["../traffic.toml"]\n'
CELL_M: Final = 100
EGRESS: Final = f"""
[[egress]]
name = "track"
keys = "veh/*/speed"
cell_m = {CELL_M}
pseudonym = "day"
"""


def tracks(store: Path) -> list[tuple[str, str, float]]:
    """Key, origin and accuracy of what the relay has of vehicles' own speeds."""
    if not store.exists():
        return []
    with closing(sqlite3.connect(store)) as database:
        return database.execute("SELECT key, sensing_origin, accuracy_m FROM records WHERE rule = 'track'").fetchall()


def summaries(store: Path) -> list[dict[str, Any]]:
    """What the relay has of the rule, oldest first: its values, where they were sensed, and by which node."""
    if not store.exists():
        return []
    with closing(sqlite3.connect(store)) as database:
        rows = database.execute(
            "SELECT origin, value, latitude_deg, longitude_deg, accuracy_m FROM records WHERE rule = ? "
            "ORDER BY event_utc_ns, origin",
            (NAME,),
        )
        return [
            {"node": node, **json.loads(value), "where": [latitude_deg, longitude_deg, accuracy_m]}
            for node, value, latitude_deg, longitude_deg, accuracy_m in rows
        ]
