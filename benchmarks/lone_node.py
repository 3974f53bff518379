"""One vehicle on loopback without neighbours: its certificates and its configuration in a folder."""

from pathlib import Path
from typing import Final

from meshnode.identity import create_mesh, issue
from protocols.base.ids import Role

NODE: Final = "veh-1"
_POSITION: Final = """
[node.position]
latitude_deg = 48.7
longitude_deg = 11.4
accuracy_m = 1.0
"""
_CONFIG: Final = f"""
[node]
id = "{NODE}"
[listen]
host = "127.0.0.1"
[discovery]
mdns = false
[http]
port = 0
"""


def write_lone_node(folder: Path, more: str, *, is_placed: bool = True) -> Path:
    """Make a mesh and a node of it in ``folder``. Returns the path of its configuration: ``node/node.toml``.

    ``more`` is TOML that the configuration ends with. Relative paths in it begin at ``node``. A node that is not placed
    has no position until a sensor gives it one.
    """
    create_mesh(folder / "authority", "benchmark")
    issue(folder / "authority", Role.VEHICLE, NODE, folder / "node")
    config = folder / "node" / "node.toml"
    config.write_text(_CONFIG + (_POSITION if is_placed else "") + more)
    return config
