"""Encoded pictures travel to a neighbour, which prepares them as the manifest of the model says."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import meshnode
from meshnode.inference.section import InferenceSection, ModelSection
from protocols.base.errors import InputInvalid, ModelUnknown
from tests.tools.eventually import until
from tests.tools.mesh_fixture import House, Open, given_house, given_opened
from tests.tools.tiny_onnx import write_model

__all__ = ["given_house", "given_opened"]
pytestmark = pytest.mark.processes
MANIFEST = "[preprocessing.x]\nwidth = 64\nheight = 48\ncolours = 'bgr'\nmean = [1, 2, 3]\n"
NEVER_HERE = InferenceSection(local=False, deadline_ms=20_000)


def camera(folder: Path, manifest: str = MANIFEST) -> dict[str, ModelSection]:
    """A model that returns the tensor that it was given, in a folder of its own."""
    folder.mkdir(exist_ok=True)
    path = write_model(folder / "camera.onnx", ["n", 3, 48, 64])
    (folder / "camera.toml").write_text(manifest)
    return {"camera": ModelSection(path=path)}


def photo(seed: int = 2) -> "np.ndarray[Any, Any]":
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8)
    Image.fromarray(pixels).resize((640, 480)).save(file, "JPEG")
    return np.frombuffer(file.getvalue(), np.uint8)


async def offers_of(node: meshnode.Node) -> None:
    await node.wait_for_peers(1, 30)
    await until(lambda: any(peer.offers for peer in node.peers()), "the neighbour's offer comes")


async def test_picture_is_prepared_by_the_neighbour_as_it_would_be_here(opened: Open, house: House) -> None:
    """Whoever computes, the answer is the same; it is checked against the signature that is shown."""
    rsu = await opened("rsu-1", role="rsu", models=camera(house.folder / "rsu"))
    vehicle = await opened("veh-1", rsu.port, models=camera(house.folder / "veh"), inference=NEVER_HERE)
    await offers_of(vehicle)
    picture = photo()
    there = await vehicle.infer("camera", {"x": picture})
    assert there.ran_on == "rsu-1"
    here = await rsu.infer("camera", {"x": picture})
    assert there.outputs["y"].shape == (1, 3, 48, 64)
    assert np.array_equal(there.outputs["y"], here.outputs["y"])
    with pytest.raises(InputInvalid, match="input 'x' of model 'camera': the picture can't be decoded"):
        await vehicle.infer("camera", {"x": picture[:3_000]})
    assert (await vehicle.infer("camera", {"x": there.outputs["y"]})).ran_on == "rsu-1"


async def test_pictures_of_a_batch_are_divided_among_nodes_one_by_one(opened: Open, house: House) -> None:
    """A folder of photos is a batch too, and a photo has a fortieth of the bytes of its pixels."""
    slow = InferenceSection(emulate_slowdown=200, deadline_ms=60_000)
    rsu = await opened("rsu-2", role="rsu", models=camera(house.folder / "rsu"), inference=slow)
    vehicle = await opened("veh-2", rsu.port, models=camera(house.folder / "veh"), inference=slow)
    await offers_of(vehicle)
    pictures = [photo(seed).tobytes() for seed in range(12)]
    nodes: set[str] = set()
    for _ in range(4):  # on a busy computer one of them may look too slow at first
        result = await vehicle.infer_batch("camera", {"x": pictures})
        nodes |= {part.node for part in result.parts}
        if len(nodes) == 2:
            break
    assert nodes == {"rsu-2", "veh-2"}
    assert [part.input_bytes for part in result.parts] != [result.parts[0].input_bytes] * 12
    alone = [(await rsu.infer("camera", {"x": picture})).outputs["y"] for picture in pictures]
    assert np.array_equal(result.outputs["y"], np.concatenate(alone))
    decoded = await vehicle.infer_batch("camera", {"x": result.outputs["y"]})
    assert sum(part.size for part in decoded.parts) == 12
    with pytest.raises(InputInvalid, match=r"row 2 of 3 of 'camera': .* are not a picture"):
        await vehicle.infer_batch("camera", {"x": [*pictures[:2], b"no picture"]})


async def test_neighbour_is_asked_for_several_pictures_at_a_time(opened: Open, house: House) -> None:
    """A request for each cost a tenth of what the detector takes; the bits are those of one picture."""
    rsu = await opened("rsu-6", role="rsu", models=camera(house.folder / "rsu"))
    vehicle = await opened("veh-6", rsu.port, models=camera(house.folder / "veh"))
    await offers_of(vehicle)
    vehicle.driver.act(lambda engine, _: engine.inference.set_models((), 0))  # only the neighbour computes
    pictures = [photo(seed).tobytes() for seed in range(60)]
    sizes: list[int] = []
    while max(sizes, default=0) < 2:  # a busy computer may take long for the first ones
        result = await vehicle.infer_batch("camera", {"x": pictures})
        sizes = [part.size for part in result.parts]
    assert {part.node for part in result.parts} == {"rsu-6"}
    alone = [(await rsu.infer("camera", {"x": picture})).outputs["y"] for picture in pictures]
    assert np.array_equal(result.outputs["y"], np.concatenate(alone))


async def test_picture_for_a_model_that_only_a_neighbour_has_is_sent_as_bytes(opened: Open, house: House) -> None:
    """The neighbour tells the outer signature, so the file of a camera is all that is needed."""
    rsu = await opened("rsu-3", role="rsu", models=camera(house.folder / "rsu"))
    vehicle = await opened("veh-3", rsu.port, inference=NEVER_HERE)
    await offers_of(vehicle)
    answer = await vehicle.infer("camera", {"x": photo().tobytes()})
    assert (answer.ran_on, answer.outputs["y"].shape) == ("rsu-3", (1, 3, 48, 64))


async def test_fallback_of_a_manifest_is_used_unless_the_configuration_names_another(
    opened: Open, house: House
) -> None:
    """The author of a model knows its smaller variant, and the owner of a node knows which one is there."""
    models = camera(house.folder / "big", MANIFEST + "[fallback]\nmodel = 'small'\n")
    node = await opened("rsu-4", role="rsu", models=models)
    assert node.driver.engine.inference.fallback_of("camera") == "small"
    (section,) = models.values()
    chosen = {"camera": ModelSection(path=section.path, fallback="other"), "other": ModelSection(path=section.path)}
    node = await opened("rsu-5", role="rsu", models=chosen)
    inference = node.driver.engine.inference
    assert [inference.fallback_of(name) for name in ("camera", "other")] == ["other", "small"]


async def test_neighbour_that_prepares_pictures_in_another_way_is_not_asked(opened: Open, house: House) -> None:
    """Its model has the same file and another digest: blue would be taken for red."""
    other = MANIFEST.replace("bgr", "rgb")
    rsu = await opened("rsu-2", role="rsu", models=camera(house.folder / "other", other))
    vehicle = await opened("veh-2", rsu.port, models=camera(house.folder / "own"), inference=NEVER_HERE)
    await offers_of(vehicle)
    with pytest.raises(ModelUnknown):
        await vehicle.infer("camera", {"x": photo()})
