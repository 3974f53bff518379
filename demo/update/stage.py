"""Prepares the demonstration of releases: a mesh, a repository of releases, two releases, and configuration files.

The model is the plate detector. Its first release computes nearly the same, as after some more training. Its second one
computes the right thing far too slowly, which no test of a publisher shows: its canaries find out.
"""

import io
import secrets
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from meshnode.identity import create_mesh, issue
from meshnode.models import ModelSpec, load_model, plate
from meshnode.sensors.images import DEFAULT_PICTURE
from protocols.base.errors import ConfigError
from protocols.base.ids import Role

if TYPE_CHECKING:
    import onnx

MODEL: Final = "plate"
PATH: Final = f"models/{MODEL}"
SIDE: Final = 192
"""The side of the square that the detector looks at, in pixels: small, because many nodes share one computer."""
GOOD, BAD = 1, 2
PATIENCE_MS: Final = 750
"""What the second release wastes in each run: many times what a run takes, so that neither a busy computer makes
the first release look as slow, nor the second one look as fast."""
_CHANGE: Final = 1e-3
"""By how much the weights of the first release differ, as a part of their spread."""
_TURNS_PER_MS: Final = 300


@dataclass(frozen=True, slots=True)
class Player:
    """One node of the demonstration."""

    name: str
    role: Role = Role.VEHICLE
    relay: bool = False
    """Whether it has an uplink to the relay."""
    canary: bool = False
    lies: bool = False
    """Whether it gives others bytes that it made up."""
    parked: bool = False
    """Whether it comes at the end only."""
    forbidden: bool = False
    """Whether the table of access of all others gives it no releases."""


PLAYERS: Final = (
    Player("rsu-1", Role.RSU, relay=True, canary=True),
    Player("veh-1", canary=True),
    Player("veh-2", canary=True),
    Player("veh-3"),
    Player("veh-liar", lies=True),
    Player("veh-parked", parked=True),
    Player("guest-1", Role.TOOL, forbidden=True),
)
CANARIES: Final = tuple(player.name for player in PLAYERS if player.canary)
HONEST: Final = tuple(player.name for player in PLAYERS if not player.lies and not player.forbidden)

_NODE: Final = """\
[node]
id = "{name}"
position = {{ latitude_deg = {latitude}, longitude_deg = 11.4237, accuracy_m = 1.0 }}

[listen]
host = "127.0.0.1"
advertise = ["127.0.0.1"]

[discovery]
interfaces = ["127.0.0.1"]

[models.plate]
path = "../factory/plate.onnx"

[inference]
deadline_ms = 10000
offload = false

[releases]
root = "../1.root.json"
{relay}
[access]
rules = [
{rules}]
"""
_RELAY: Final = """\
[relay]
id = "relay-1"
host = "127.0.0.1"
port = {port}

[releases]
folder = "../repository"
"""


def write_files(folder: Path, relay_port: int) -> None:
    """Write everything under ``folder``, and publish the first release.

    :raises MeshError: when that fails.
    """
    create_mesh(folder / "authority", f"update-{secrets.token_hex(4)}")
    issue(folder / "authority", Role.RELAY, "relay-1", folder / "relay-1")
    (folder / "relay-1" / "relay.toml").write_text(_RELAY.format(port=relay_port))
    write_models(folder)
    for number in (1, 2):
        relay(folder, "release", "key", "make", str(folder / "vault" / f"root-{number}.pem"))
    keys = [f"--root-key={folder / 'vault' / f'root-{number}.pem'}" for number in (1, 2)]
    relay(folder, "release", "init", "--folder", str(folder / "repository"), *keys)
    (folder / "1.root.json").write_bytes((folder / "repository" / "metadata" / "1.root.json").read_bytes())
    for index, player in enumerate(PLAYERS):
        home = folder / player.name
        issue(folder / "authority", player.role, player.name, home)
        uplink = f'relay = "127.0.0.1:{relay_port}"\n' if player.relay else ""
        (home / "node.toml").write_text(_NODE.format(
            name=player.name, latitude=48.7655 + index * 0.0005, relay=uplink, rules="".join(_rules())
        ))  # fmt: skip


def _rules() -> "list[str]":
    """What everybody may do, but for releases, which only vehicles and roadside units get."""
    rules = []
    for role in (Role.VEHICLE, Role.RSU, Role.TOOL):
        verbs = ("publish", "subscribe", "infer", "offer", *(() if role is Role.TOOL else ("release",)))
        rules += [f'    {{ role = "{role}", verb = "{verb}", keys = "**" }},\n' for verb in verbs]
    return rules


def publish(folder: Path, counter: int) -> str:
    """Publish a release, and order that the canaries serve it first. Returns what the commands said."""
    repository = ("--folder", str(folder / "repository"))
    said = relay(folder, "release", "publish", *repository, str(folder / f"release-{counter}"))
    canaries = [f"--canary={name}" for name in CANARIES]
    gates = ("--soak=6s", "--min-runs=5", "--max-latency=6")
    return said + relay(folder, "rollout", "start", *repository, MODEL, str(counter), *canaries, *gates)


def relay(folder: Path, *arguments: str) -> str:
    """Run ``cloud-relay``, as an operator does. :raises ConfigError: it says no."""
    (folder / "vault").mkdir(mode=0o700, exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "cloud_relay", *arguments], capture_output=True, text=True, check=False,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    if done.returncode:
        raise ConfigError(f"'cloud-relay {' '.join(arguments[:2])}' failed: {done.stderr.strip()[-500:]}")
    return done.stdout


# --- the models ------------------------------------------------------------------------------------------------------
def write_models(folder: Path) -> None:
    """The model of the factory, and two releases with golden vectors."""
    import onnx

    network = onnx.load(plate.find_detector())
    _write_model(folder / "factory", network)
    trained = onnx.ModelProto.FromString(network.SerializeToString())
    _train(trained)
    _write_model(folder / f"release-{GOOD}", trained)
    slow = onnx.ModelProto.FromString(trained.SerializeToString())
    _waste(slow)
    _write_model(folder / f"release-{BAD}", slow)


def _write_model(folder: Path, network: "onnx.ModelProto") -> None:
    import numpy as np

    folder.mkdir()
    path = folder / f"{MODEL}.onnx"
    path.write_bytes(network.SerializeToString())
    path.with_suffix(".toml").write_text(plate.manifest(SIDE))
    picture = picture_bytes()
    outputs = dict(load_model(ModelSpec(MODEL, path)).run({plate.INPUT: np.frombuffer(picture, np.uint8)}))
    (folder / "street.jpg").write_bytes(picture)
    lines = []
    for name, array in outputs.items():
        np.save(folder / f"{name}.npy", array)
        lines.append(f'{name} = "{name}.npy"')
    with path.with_suffix(".toml").open("a") as manifest:
        manifest.write(
            f'\n[[golden]]\ninputs = {{ {plate.INPUT} = "street.jpg" }}\noutputs = {{ {", ".join(lines)} }}\n'
        )


def picture_bytes(quality: int = 85) -> bytes:
    """A picture of a street as JPEG."""
    from PIL import Image

    with Image.open(DEFAULT_PICTURE) as picture:
        file = io.BytesIO()
        picture.convert("RGB").resize((SIDE, SIDE)).save(file, "JPEG", quality=quality)
    return file.getvalue()


def _train(network: "onnx.ModelProto") -> None:
    """Change all weights a little, always in the same way."""
    import numpy as np
    from onnx import numpy_helper

    random = np.random.default_rng(1)
    for tensor in network.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32 and array.ndim > 1:
            changed = array + (_CHANGE * array.std() * random.standard_normal(array.shape)).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))


def _waste(network: "onnx.ModelProto") -> None:
    """Add work whose result changes nothing."""
    from onnx import TensorProto, helper

    inner = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["goes_on"]),
            helper.make_node("Tanh", ["wasted"], ["wasted_more"]),
        ],
        "waste",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("wasted", TensorProto.FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("wasted_more", TensorProto.FLOAT, [1]),
        ],
    )
    for node in network.graph.node:
        node.input[:] = ["waste_input" if name == plate.INPUT else name for name in node.input]
    constants: dict[str, tuple[int, list[int], list[Any]]] = {
        "waste_turns": (TensorProto.INT64, [], [PATIENCE_MS * _TURNS_PER_MS]),
        "waste_on": (TensorProto.BOOL, [], [True]),
        "waste_begin": (TensorProto.FLOAT, [1], [1.0]),
        "waste_zero": (TensorProto.FLOAT, [1], [0.0]),
    }
    for name, (kind, shape, values) in constants.items():
        network.graph.initializer.append(helper.make_tensor(name, kind, shape, values))
    first = [
        helper.make_node("Loop", ["waste_turns", "waste_on", "waste_begin"], ["waste_result"], body=inner),
        helper.make_node("Mul", ["waste_result", "waste_zero"], ["waste_nothing"]),
        helper.make_node("Add", [plate.INPUT, "waste_nothing"], ["waste_input"]),
    ]
    rest = list(network.graph.node)
    del network.graph.node[:]
    network.graph.node.extend([*first, *rest])
