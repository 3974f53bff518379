"""Pictures as cameras and scanners write them: turned by a tag, with 16 bits of grey, cut off among good ones."""

import itertools
import logging
import shutil
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from PIL import Image

from meshnode.models import ModelSpec, load_model, plate
from meshnode.sensors import DriverContext, Sample, create_driver
from meshnode.sensors.images import DEFAULT_PICTURE
from protocols.base.errors import ConfigError, ModelInvalid
from protocols.base.ids import NodeId

FIELD = Path(__file__).parent / "field" / "images"


def shown(options: dict[str, Any], folder: Path, limit: int = 100) -> tuple[list[Sample], DriverContext]:
    context = DriverContext(NodeId("n-1"), folder, Random(1), sensor="camera")
    driver = create_driver("images", options, context)
    return list(itertools.islice(driver.samples(), limit)), context


@pytest.mark.parametrize("name", ["exif_orientation_6.jpg", "grey_16_bit.png"])
def test_picture_of_another_orientation_or_depth_shows_what_the_camera_saw(name: str) -> None:
    """A model that is given a picture on its side, or one that is white all over, finds nothing and says nothing."""
    options = {"image": name, "loop": False, "model": "m", "preprocess": "rgb"}
    [sample], context = shown(options, FIELD)
    assert (sample.value["width"], sample.value["height"], context.samples_skipped) == (518, 331, 0)
    assert sample.infer is not None
    [pixels] = sample.infer.inputs.values()
    grey = np.asarray(Image.fromarray(np.asarray(pixels)[0]).convert("L"), dtype=int)
    original = np.asarray(Image.open(DEFAULT_PICTURE).convert("L"), dtype=int)
    assert np.abs(grey - original).mean() < 2


@pytest.mark.parametrize("name", ["exif_orientation_6.jpg", "grey_16_bit.png"])
def test_picture_of_another_orientation_or_depth_has_its_plate_found(name: str) -> None:
    """The place of the plate is told in the upright picture."""
    try:
        detector = plate.find_detector()
    except ModelInvalid as error:
        pytest.skip(str(error))
    model = load_model(ModelSpec("plates", detector))
    [sample], _ = shown({"image": name, "loop": False, "model": "plates"}, FIELD)
    assert sample.infer is not None
    assert sample.infer.interpret is not None
    boxes = sample.infer.interpret(dict(model.run(sample.infer.inputs, sample.infer.outputs)))
    assert any(abs(box["left"] - 311) < 14 and abs(box["top"] - 191) < 8 for box in boxes), boxes


@pytest.mark.parametrize("orientation", range(1, 9))
def test_picture_is_turned_before_it_is_varied(tmp_path: Path, orientation: int) -> None:
    """All eight orientations exist, and a crop of the turned picture is another than one of the file's."""
    upright = np.zeros((40, 80, 3), np.uint8)
    upright[:20, :40], upright[:20, 40:], upright[20:, :40] = (200, 0, 0), (0, 200, 0), (0, 0, 200)
    # What a camera writes for the orientation, after the table in EXIF 2.32, section 4.6.4.
    turns = {1: (), 2: (Image.Transpose.FLIP_LEFT_RIGHT,), 3: (Image.Transpose.ROTATE_180,),
             4: (Image.Transpose.FLIP_TOP_BOTTOM,), 5: (Image.Transpose.TRANSPOSE,), 6: (Image.Transpose.ROTATE_90,),
             7: (Image.Transpose.TRANSVERSE,), 8: (Image.Transpose.ROTATE_270,)}  # fmt: skip
    picture = Image.fromarray(upright)
    for turn in turns[orientation]:
        picture = picture.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "p.png", exif=exif)
    options = {"image": "p.png", "loop": False, "vary": 1, "seed": 2, "model": "m", "preprocess": "rgb"}
    [sample], _ = shown(options, tmp_path)
    assert sample.infer is not None
    [pixels] = sample.infer.inputs.values()
    corners = np.asarray(pixels)[0][[2, 2, -3, -3], [2, -3, 2, -3]]
    assert [int(np.argmax(corner)) if corner.max() > 100 else None for corner in corners] == [0, 1, 2, None]


def test_picture_of_16_bits_keeps_its_white_and_its_black(tmp_path: Path) -> None:
    """Scaled by 257, so that 0 stays 0 and 65,535 becomes 255."""
    levels = np.array([[0, 128, 257, 32_896, 65_535]], np.uint16)
    Image.fromarray(levels).save(tmp_path / "p.png")
    [sample], _ = shown({"image": "p.png", "loop": False, "model": "m", "preprocess": "rgb"}, tmp_path)
    assert sample.infer is not None
    [pixels] = sample.infer.inputs.values()
    assert np.asarray(pixels)[0, 0, :, 0].tolist() == [0, 0, 1, 128, 255]


def test_folder_with_a_cut_off_picture_shows_the_others_and_counts_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A camera writes into the folder while the node reads: one half-written file must not blind it."""
    for name in ("a.png", "c.png"):
        shutil.copyfile(DEFAULT_PICTURE, tmp_path / name)
    shutil.copyfile(FIELD / "truncated.jpg", tmp_path / "b.jpg")
    with caplog.at_level(logging.WARNING):
        samples, context = shown({"folder": ".", "rate_hz": 2}, tmp_path, limit=5)
    assert [s.value["picture"] for s in samples] == ["a.png", "c.png", "a.png", "c.png", "a.png"]
    assert [s.due_s for s in samples] == [0, 0.5, 1, 1.5, 2]
    assert context.samples_skipped == 2
    assert len(caplog.records) == 1  # the second round tells nothing new
    assert "sensor camera: 1 samples skipped, the last: picture" in caplog.text
    assert "b.jpg can't be read (image file is truncated" in caplog.text


def test_folder_without_a_single_good_picture_is_refused(tmp_path: Path) -> None:
    """In a loop it would otherwise be read for ever, as fast as the processor can."""
    for name in ("a.jpg", "b.jpg"):
        shutil.copyfile(FIELD / "truncated.jpg", tmp_path / name)
    with pytest.raises(ConfigError, match=r"picture .*a\.jpg can't be read"):
        shown({"folder": ".", "loop": True}, tmp_path)


def test_skipped_samples_are_counted_all_and_logged_a_few(caplog: pytest.LogCaptureFixture) -> None:
    """A file may have a million bad rows, and the disk of a vehicle is small."""
    context = DriverContext(NodeId("n-1"), Path(), Random(1), sensor="log")
    with caplog.at_level(logging.WARNING):
        for number in range(1_000):
            context.skipped(f"row {number}")
        context.skipped("a block of rows", 50)
    assert context.samples_skipped == 1_050
    assert [record.message for record in caplog.records] == [
        f"sensor log: {number + 1} samples skipped, the last: row {number}" for number in range(5)
    ]
