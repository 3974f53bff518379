"""Bundles: rules, a model and an application in one file, which is checked whoever made it."""

import os
import stat
import tomllib
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from meshnode.applications.bundles import archive as archives
from meshnode.applications.bundles.archive import digest_of, pack, unpack
from meshnode.cli.main import commands
from meshnode.loading import load
from protocols.base.errors import ConfigError, StorageError
from tests.tools.mesh_fixture import House
from tests.tools.tiny_onnx import write_model

RULES = """[[rule]]
name = "traffic"
keys = "veh/*/speed"
unit = "m/s"
window = { size_s = 10 }
compute = ["count"]
output = { key = "rsu/{node}/traffic", unit = "1" }
"""
CASES = """rules = "traffic.toml"
[[case]]
name = "two readings"
node = "rsu-1"
reading = [
    { key = "veh/a/speed", value = 10, unit = "m/s", at_s = 1, origin = "rsu-1" },
    { key = "veh/a/speed", value = 20, unit = "m/s", at_s = 8, origin = "rsu-1" },
]
expected = [{ key = "rsu/rsu-1/traffic", value = { count = 2 } }]
"""
APPLICATION = """name = "counter"
version = "1.2"
publisher = "Example"
licence = "Apache-2.0"
run = ["./counter.sh"]
reads = ["rsu/*/traffic"]
publishes = ["rsu/{id}/count"]
"""
BUNDLE = """name = "junction"
version = "1.0"
publisher = "Example"
licence = "Apache-2.0"
rules = ["rules/traffic.toml"]
models = ["models/double.onnx"]
applications = ["counter"]
"""


@pytest.fixture(name="folder")
def given_folder(tmp_path: Path) -> Path:
    """A folder with everything that a bundle may have, and a file that is none of it."""
    folder = tmp_path / "made"
    for name in ("rules", "models", "counter/data"):
        (folder / name).mkdir(parents=True)
    (folder / "bundle.toml").write_text(BUNDLE)
    (folder / "rules/traffic.toml").write_text(RULES)
    (folder / "rules/traffic-cases.toml").write_text(CASES)
    write_model(folder / "models/double.onnx", ["batch", 4], "Add")
    (folder / "models/double.toml").write_text('description = "twice as much"\n')
    (folder / "counter/application.toml").write_text(APPLICATION)
    (folder / "counter/counter.sh").write_text("#!/bin/sh\n")
    (folder / "counter/counter.sh").chmod(0o755)
    (folder / "counter/data/table.csv").write_text("1,2\n")
    (folder / "notes.txt").write_text("not for others")
    return folder


def ran(*arguments: object) -> Result:
    return CliRunner().invoke(commands, ["bundle", *map(str, arguments)])


def test_bundle_that_is_packed_and_unpacked_can_be_used_by_a_node(folder: Path, tmp_path: Path) -> None:
    """The tables that are printed are a configuration as they stand."""
    packed = ran("pack", folder, tmp_path / "junction.bundle")
    assert packed.exit_code == 0, packed.output
    digest = digest_of(tmp_path / "junction.bundle")
    assert digest in packed.output
    home = House(tmp_path).home("rsu-1", "rsu")
    unpacked = ran("unpack", tmp_path / "junction.bundle", "--into", home / "bundles", "--sha256", digest)
    assert unpacked.exit_code == 0, unpacked.output
    here = home / "bundles/junction-1.0"
    assert sorted(path.relative_to(here).as_posix() for path in here.rglob("*") if path.is_file()) == [
        "bundle.toml", "counter/application.toml", "counter/counter.sh", "counter/data/table.csv", "models/double.onnx",
        "models/double.toml", "rules/traffic-cases.toml", "rules/traffic.toml",
    ]  # fmt: skip
    assert os.access(here / "counter/counter.sh", os.X_OK)
    assert not os.access(here / "counter/application.toml", os.X_OK)
    tables = tomllib.loads(unpacked.stdout)
    assert tables["application"][0]["publishes"] == ["rsu/{id}/count"]
    config = home / "node.toml"
    config.write_text(f'[node]\nid = "rsu-1"\n{unpacked.stdout}')
    assert load(config).node.id == "rsu-1"


def test_same_content_is_the_same_file(folder: Path, tmp_path: Path) -> None:
    """Its digest says what is in it, whenever and in whatever order it was written."""
    pack(folder, tmp_path / "one.bundle")
    for path in folder.rglob("*"):
        os.utime(path, (1, 1))
    (folder / "notes.txt").write_text("other notes")
    pack(folder, tmp_path / "two.bundle")
    assert (tmp_path / "one.bundle").read_bytes() == (tmp_path / "two.bundle").read_bytes()


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("bundle.toml", 'name = "junction"', "version"),
        ("bundle.toml", BUNDLE.replace('"counter"', '"../counter"'), "is not a plain path"),
        ("bundle.toml", BUNDLE.replace('"counter"', '"."'), "is not a plain path"),
        ("bundle.toml", BUNDLE.replace("rules/traffic", "x" * 300), "File name too long"),
        ("bundle.toml", BUNDLE.replace("1.0", "1/0"), "is no version"),
        ("bundle.toml", BUNDLE.replace("rules/traffic.toml", "rules/missing.toml"), "missing.toml is not a file"),
        ("bundle.toml", BUNDLE.partition("rules =")[0], "are empty"),
        ("rules/traffic.toml", RULES.replace("count", "cuont"), "cuont"),
        ("rules/traffic-cases.toml", CASES.replace("count = 2", "count = 3"), "'two readings' is not as expected"),
        ("counter/application.toml", APPLICATION.replace('"rsu/*/traffic"', '"rsu//traffic"'), "empty chunk"),
        ("models/double.toml", "licence = 3", "licence"),
    ],
)
def test_bundle_with_a_mistake_is_not_packed(folder: Path, tmp_path: Path, file: str, content: str, told: str) -> None:
    """The command says in which file it is, and leaves nothing behind."""
    (folder / file).write_text(content)
    packed = ran("pack", folder, tmp_path / "junction.bundle")
    assert packed.exit_code == 1
    assert told in packed.output
    assert not list(tmp_path.glob("*.bundle*"))
    assert ran("check", folder).exit_code == 1


def test_bundle_that_links_to_other_files_is_not_packed(folder: Path, tmp_path: Path) -> None:
    """Somebody's key would go along with it."""
    (tmp_path / "key").write_text("secret")
    (folder / "counter/key").symlink_to(tmp_path / "key")
    with pytest.raises(ConfigError, match="counter/key is not a file"):
        pack(folder, tmp_path / "junction.bundle")


def test_texts_of_a_bundle_can_add_nothing_to_the_tables_that_are_printed(folder: Path, tmp_path: Path) -> None:
    """An operator copies the tables into the configuration of a node."""
    model = 'models/a" ] [[application]] manifest = "b.onnx'
    (folder / "models/double.onnx").rename(folder / model)
    (folder / "models/double.toml").rename((folder / model).with_suffix(".toml"))
    content = BUNDLE.replace('"models/double.onnx"', f"'''{model}'''")
    content = content.replace('publisher = "Example"', 'publisher = "Example\\n[access]\\nrules = []\\u001b[2J"')
    (folder / "bundle.toml").write_text(content)
    pack(folder, tmp_path / "bad.bundle")
    unpacked = ran("unpack", tmp_path / "bad.bundle", "--into", tmp_path / "bundles")
    assert unpacked.exit_code == 0, unpacked.output
    tables = tomllib.loads(unpacked.stdout)
    assert sorted(tables) == ["application", "models", "rules"]
    assert len(tables["application"]) == 1
    ((_, table),) = tables["models"].items()
    assert table["path"].endswith(model)
    assert "\x1b" not in unpacked.stdout


@pytest.mark.parametrize("name", [b"a\\b", b"a\nb", b"\xff"])
def test_file_whose_name_no_bundle_can_have_is_refused_when_it_is_packed(
    folder: Path, tmp_path: Path, name: bytes
) -> None:
    """Not only by whoever unpacks it."""
    Path(os.fsdecode(os.fsencode(folder / "counter") + b"/" + name)).write_text("x")
    with pytest.raises(ConfigError, match="whose name no bundle can have"):
        pack(folder, tmp_path / "junction.bundle")


# --- files that somebody else made -----------------------------------------------------------------------------------
def changed(archive: Path, into: Path, name: str, content: bytes = b"x", mode: int = stat.S_IFREG | 0o644) -> Path:
    """A copy with one more entry."""
    into.write_bytes(archive.read_bytes())
    entry = zipfile.ZipInfo(name)
    entry.external_attr = mode << 16
    with zipfile.ZipFile(into, "a") as out:
        out.writestr(entry, content)
    return into


@pytest.mark.parametrize(
    ("name", "mode", "told"),
    [
        ("../outside", stat.S_IFREG | 0o644, "no plain file inside"),
        ("/etc/outside", stat.S_IFREG | 0o644, "no plain file inside"),
        ("counter/link", stat.S_IFLNK | 0o777, "no plain file inside"),
        ("counter/pipe", stat.S_IFIFO | 0o644, "no plain file inside"),
        ("more.txt", stat.S_IFREG | 0o644, "'more.txt', which its description does not name"),
    ],
)
def test_hostile_archive_is_refused_whole(folder: Path, tmp_path: Path, name: str, mode: int, told: str) -> None:
    pack(folder, tmp_path / "good.bundle")
    bad = changed(tmp_path / "good.bundle", tmp_path / "bad.bundle", name, mode=mode)
    with pytest.raises(ConfigError, match=told):
        unpack(bad, tmp_path / "bundles")
    assert list((tmp_path / "bundles").iterdir()) == []
    assert not (tmp_path / "outside").exists()


def test_archive_that_unpacks_to_too_much_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it says of its sizes is not believed: what comes out is counted."""
    pack(folder, tmp_path / "good.bundle")
    bad = changed(tmp_path / "good.bundle", tmp_path / "bad.bundle", "counter/zeros", bytes(5_000_000))
    monkeypatch.setattr(archives, "MAX_BYTES", 4_000_000)
    with pytest.raises(ConfigError, match="larger than 4,000,000 bytes"):
        unpack(bad, tmp_path / "bundles")
    monkeypatch.setattr(archives, "MAX_FILES", 3)
    with pytest.raises(ConfigError, match="and 3 are the most"):
        unpack(bad, tmp_path / "bundles")
    assert list((tmp_path / "bundles").iterdir()) == []


@pytest.mark.parametrize("cut", [0, 10, 400, -30])
def test_damaged_archive_is_refused(folder: Path, tmp_path: Path, cut: int) -> None:
    pack(folder, tmp_path / "good.bundle")
    bad = tmp_path / "bad.bundle"
    bad.write_bytes((tmp_path / "good.bundle").read_bytes()[:cut])
    with pytest.raises(ConfigError, match="is no bundle, or is damaged"):
        unpack(bad, tmp_path / "bundles")


def test_archive_with_damaged_or_other_compression_is_refused(tmp_path: Path) -> None:
    """Each way to compress has errors of its own."""
    bad = tmp_path / "bad.bundle"
    for way, told in ((zipfile.ZIP_DEFLATED, "is damaged"), (zipfile.ZIP_LZMA, "pack it anew")):
        with zipfile.ZipFile(bad, "w", way) as out:
            out.writestr("bundle.toml", BUNDLE * 20)
        begins = 30 + len("bundle.toml")
        content = bytearray(bad.read_bytes())
        content[begins : begins + 20] = bytes(range(0xE0, 0xF4))
        bad.write_bytes(content)
        with pytest.raises(ConfigError, match=told):
            unpack(bad, tmp_path / "bundles")
    with zipfile.ZipFile(bad, "w") as out:
        out.writestr("ä.toml", BUNDLE)
    bad.write_bytes(bad.read_bytes().replace("ä".encode(), b"\xff\xff"))
    with pytest.raises(ConfigError, match="is damaged"):
        unpack(bad, tmp_path / "bundles")


def test_other_digest_and_a_second_time_are_refused(folder: Path, tmp_path: Path) -> None:
    pack(folder, tmp_path / "good.bundle")
    with pytest.raises(ConfigError, match="has the SHA-256"):
        unpack(tmp_path / "good.bundle", tmp_path / "bundles", "0" * 64)
    unpack(tmp_path / "good.bundle", tmp_path / "bundles")
    with pytest.raises(StorageError, match="exists already"):
        unpack(tmp_path / "good.bundle", tmp_path / "bundles")
