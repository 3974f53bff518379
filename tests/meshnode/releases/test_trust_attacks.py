"""The attacks that TUF lists, tried against a node with bundles that a lying neighbour could hand it.

Each is refused by the name of the attack, and what was trusted before is trusted after. Slow retrieval is for the
machine that fetches chunks: a bundle is checked when all of it is there.
"""

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import MetaFile, Root

from cloud_relay.releases.repository import Lifetimes
from meshnode.releases.trust import Trust
from protocols.base.errors import MetadataInvalid
from protocols.base.limits import MAX_CHUNK_BYTES
from tests.tools.release_fixture import Publisher, clock_at, named, packed, resigned

Files = dict[str, bytes]


class Victim:
    """A node that trusts release 1, while release 2 is published."""

    def __init__(self, tmp_path: Path) -> None:
        self.publisher = Publisher(tmp_path / "repository")
        self.trust = Trust(tmp_path / "trust", self.publisher.root_path)
        self.publisher.release(1)
        self.old = self.publisher.files
        self.trusted = self.trust.verify(self.publisher.bundle)
        self.publisher.release(2)
        self.new = self.publisher.files

    def refuses(self, files: Files | bytes, attack: str) -> str:
        """Whether a bundle is refused as that attack. Returns the message."""
        bundle = files if isinstance(files, bytes) else packed(files)
        with pytest.raises(MetadataInvalid) as refused:
            self.trust.verify(bundle)
        assert refused.value.attack == attack, refused.value
        assert str(refused.value).startswith(f"{attack}: ")
        assert self.trust.current() == self.trusted
        return str(refused.value)


@pytest.fixture
def victim(tmp_path: Path) -> Victim:
    return Victim(tmp_path)


def test_attack_none_is_taken(victim: Victim) -> None:
    """Otherwise everything below would pass for the wrong reason."""
    assert victim.trust.verify(packed(victim.new)).timestamp_version == 3


# --- arbitrary software, wrong keys, tampering -----------------------------------------------------------------------
@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets", "models"])
def test_attack_arbitrary_software_signed_by_keys_of_the_attacker_is_refused(victim: Victim, role: str) -> None:
    """A neighbour that makes metadata of its own, for one role after the other."""
    mallory = CryptoSigner.generate_ed25519()
    name = named(victim.new, role)
    forged = resigned(victim.new[name], lambda signed: None, mallory)
    expected = "wrong keys" if role == "timestamp" else "mix-and-match"  # what names a file names its digest
    assert name in victim.refuses(victim.new | {name: forged}, expected)


def test_attack_arbitrary_software_by_a_whole_repository_of_its_own_is_refused(victim: Victim, tmp_path: Path) -> None:
    """The attacker has everything but the keys."""
    mallory = Publisher(tmp_path / "mallory")
    mallory.release(9)
    victim.refuses(mallory.files, "mix-and-match")  # the root is another one than the trusted one of that version
    victim.refuses(mallory.files | {"1.root.json": victim.new["1.root.json"]}, "wrong keys")


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets", "models"])
def test_attack_stolen_key_of_another_role_is_refused(victim: Victim, role: str) -> None:
    """A key that is good for releases does not make it good for the timestamp."""
    thief = victim.publisher.signers["rollouts"]
    name = named(victim.new, role)
    victim.refuses(victim.new | {name: resigned(victim.new[name], lambda signed: None, thief)},
                   "wrong keys" if role == "timestamp" else "mix-and-match")  # fmt: skip


def test_attack_publisher_key_that_signs_everything_above_is_refused(victim: Victim) -> None:
    """The thief of one publisher's key rewrites its list, and has to rewrite what names it, without the keys."""
    signers, name = victim.publisher.signers, named(victim.new, "models")
    evil = resigned(victim.new[name], lambda signed: signed.targets.clear(), signers["models"])
    files = victim.new | {name: evil}
    victim.refuses(files, "mix-and-match")
    snapshot = named(files, "snapshot")

    def name_it(signed: Any) -> None:
        signed.meta["models.json"] = MetaFile.from_data(signed.meta["models.json"].version, evil, ["sha256"])

    files[snapshot] = resigned(files[snapshot], name_it, signers["models"])
    victim.refuses(files, "mix-and-match")
    files["timestamp.json"] = resigned(
        files["timestamp.json"],
        lambda signed: setattr(signed, "snapshot_meta", MetaFile.from_data(3, files[snapshot], ["sha256"])),
        signers["models"],
    )
    victim.refuses(files, "wrong keys")


@pytest.mark.parametrize(
    ("role", "attack"),
    [
        ("timestamp", "tampered"),
        ("snapshot", "mix-and-match"),
        ("targets", "mix-and-match"),
        ("models", "mix-and-match"),
    ],
)
def test_attack_changed_content_under_the_old_signature_is_refused(victim: Victim, role: str, attack: str) -> None:
    """One bit in the signed part."""
    name = named(victim.new, role)
    changed = resigned(victim.new[name], lambda signed: setattr(signed, "expires", signed.expires + timedelta(1)))
    victim.refuses(victim.new | {name: changed}, attack)


@pytest.mark.parametrize("roots", [0, 1])
def test_attack_new_root_signed_by_too_few_is_refused(victim: Victim, roots: int) -> None:
    """One stolen key of root of two that are needed."""
    signers = [*victim.publisher.root_signers[:roots], CryptoSigner.generate_ed25519()]

    def newer(signed: Root) -> None:
        signed.version = 2
        signed.roles["root"].threshold = 1
        signed.add_key(signers[-1].public_key, "root")
        signed.add_key(signers[-1].public_key, "timestamp")

    evil = resigned(victim.new["1.root.json"], newer, *signers)
    victim.refuses(victim.new | {"2.root.json": evil}, "tampered" if roots else "wrong keys")


def test_attack_root_signed_twice_by_one_key_is_refused(victim: Victim) -> None:
    """The threshold counts keys and not signatures."""
    evil = resigned(victim.new["1.root.json"], lambda signed: setattr(signed, "version", 2),
                    victim.publisher.root_signers[0])  # fmt: skip
    content = json.loads(evil)
    content["signatures"] *= 2
    victim.refuses(victim.new | {"2.root.json": json.dumps(content).encode()}, "malformed")


def test_attack_key_that_was_revoked_is_refused(victim: Victim) -> None:
    """A thief has the key of the publisher; the relay has exchanged it; the thief goes on."""
    publisher = victim.publisher
    stolen = dict(publisher.signers)
    with publisher.changing() as repository:
        publisher.signers["models"] = CryptoSigner.generate_ed25519()
        repository.exchange_key("models", publisher.signers["models"].public_key)
        repository.use_keys([publisher.signers["models"]])
    victim.trusted = victim.trust.verify(publisher.bundle)
    files = publisher.files
    name = named(files, "models")
    evil = resigned(files[name], lambda signed: signed.targets.clear(), stolen["models"])
    snapshot = named(files, "snapshot")
    newer = f"{int(snapshot.partition('.')[0]) + 1}.snapshot.json"

    def name_it(signed: Any) -> None:
        signed.version += 1
        signed.meta["models.json"] = MetaFile.from_data(signed.meta["models.json"].version, evil, ["sha256"])

    # Even with the keys of snapshot and timestamp, which lie on the relay.
    forged = files | {name: evil, newer: resigned(files[snapshot], name_it, stolen["snapshot"])}
    del forged[snapshot]

    def follow(signed: Any) -> None:
        signed.version += 1
        signed.snapshot_meta = MetaFile.from_data(signed.snapshot_meta.version + 1, forged[newer], ["sha256"])

    forged["timestamp.json"] = resigned(files["timestamp.json"], follow, stolen["timestamp"])
    assert "models" in victim.refuses(forged, "wrong keys")


def test_attack_timestamp_key_that_was_revoked_is_refused(victim: Victim) -> None:
    """As before, for a role that root names."""
    stolen = victim.publisher.signers["timestamp"]
    victim.publisher.rotate("timestamp")
    files = victim.publisher.files
    newer = resigned(files["timestamp.json"], lambda signed: setattr(signed, "version", 99), stolen)
    victim.refuses(files | {"timestamp.json": newer}, "wrong keys")
    victim.trusted = victim.trust.verify(victim.publisher.bundle)
    victim.refuses(files | {"timestamp.json": newer}, "wrong keys")


# --- rollback, fast-forward, freeze ----------------------------------------------------------------------------------
def test_attack_rollback_to_older_metadata_is_refused(victim: Victim) -> None:
    """Everything in it is signed, and was right once."""
    victim.trusted = victim.trust.verify(packed(victim.new))
    assert "timestamp.json" in victim.refuses(victim.old, "rollback")


def test_attack_rollback_of_a_list_below_a_new_timestamp_is_refused(victim: Victim) -> None:
    """The keys of snapshot and timestamp lie on the relay, and may be stolen: they bring no older list of a publisher
    back."""
    victim.trusted = victim.trust.verify(packed(victim.new))
    signers, name = victim.publisher.signers, named(victim.old, "models")
    files = victim.new | {name: victim.old[name]}
    del files[named(victim.new, "models")]
    files[named(victim.new, "models")] = victim.new[named(victim.new, "models")]
    del files[named(files, "models")]
    files[name] = victim.old[name]
    snapshot = named(victim.new, "snapshot")
    newer = "9.snapshot.json"

    def older(signed: Any) -> None:
        signed.version = 9
        signed.meta["models.json"] = MetaFile.from_data(int(name.partition(".")[0]), victim.old[name], ["sha256"])

    files[newer] = resigned(files.pop(snapshot), older, signers["snapshot"])

    def follow(signed: Any) -> None:
        signed.version = 9
        signed.snapshot_meta = MetaFile.from_data(9, files[newer], ["sha256"])

    files["timestamp.json"] = resigned(files["timestamp.json"], follow, signers["timestamp"])
    victim.refuses(files, "rollback")


def test_attack_rollback_of_root_is_refused(victim: Victim) -> None:
    """An older root would bring keys back that were taken out."""
    before = victim.publisher.files
    victim.publisher.rotate("timestamp")
    victim.trusted = victim.trust.verify(victim.publisher.bundle)
    assert "root 2" in victim.refuses(before, "rollback")
    without = victim.publisher.files
    del without["2.root.json"]
    victim.refuses(without, "rollback")


def test_attack_fast_forward_is_over_once_the_keys_are_exchanged(victim: Victim) -> None:
    """A thief of the relay's keys signs versions that nobody reaches. The node takes them, as it must, and would take
    nothing of the relay any more. New keys make it forget them."""
    publisher, files = victim.publisher, dict(victim.new)
    snapshot = named(files, "snapshot")
    files["1000000.snapshot.json"] = resigned(
        files.pop(snapshot), lambda signed: setattr(signed, "version", 1_000_000), publisher.signers["snapshot"]
    )

    def far(signed: Any) -> None:
        signed.version = 1_000_000
        signed.snapshot_meta = MetaFile.from_data(1_000_000, files["1000000.snapshot.json"], ["sha256"])

    files["timestamp.json"] = resigned(files["timestamp.json"], far, publisher.signers["timestamp"])
    victim.trusted = victim.trust.verify(packed(files))
    assert victim.trusted.timestamp_version == 1_000_000
    publisher.release(3)
    victim.refuses(publisher.files, "rollback")
    publisher.rotate("timestamp")
    publisher.rotate("snapshot")
    recovered = victim.trust.verify(publisher.bundle)
    assert (recovered.root_version, len(recovered.releases)) == (3, 3)
    assert recovered.timestamp_version < 1_000


def test_attack_fast_forward_beyond_all_numbers_is_refused(victim: Victim) -> None:
    """No newer version could ever be told on the wire."""
    far = resigned(
        victim.new["timestamp.json"],
        lambda signed: setattr(signed, "version", 2**31),
        victim.publisher.signers["timestamp"],
    )
    victim.refuses(victim.new | {"timestamp.json": far}, "fast-forward")


def test_attack_freeze_with_expired_metadata_is_refused(tmp_path: Path) -> None:
    """Neighbours that hold back what is new can do so until what they give has ended."""
    publisher = Publisher(tmp_path / "repository", Lifetimes(online=2))
    trust = Trust(tmp_path / "trust", publisher.root_path)
    publisher.ahead(-3)
    publisher.refresh()
    with pytest.raises(MetadataInvalid, match="timestamp") as refused:
        trust.verify(publisher.bundle)
    assert refused.value.attack == "freeze"
    assert "refresh" in str(refused.value)
    publisher.ahead(3)
    assert not trust.verify(publisher.refresh()).is_expired


@pytest.mark.parametrize("role", ["root", "targets"])
def test_attack_freeze_of_a_longer_lived_role_is_refused(tmp_path: Path, role: str) -> None:
    """A timestamp that is signed anew does not give life to what it leads to."""
    publisher = Publisher(tmp_path / "repository", Lifetimes(**{"root": 900, "targets": 900, "online": 30} | {role: 1}))
    publisher.ahead(-3)
    if role == "root":
        with publisher.changing() as repository:
            repository.sign_root(publisher.root_signers[:2])
    else:
        publisher.refresh(targets_too=True)
    publisher.ahead(3)
    publisher.refresh()
    with pytest.raises(MetadataInvalid, match=role) as refused:
        Trust(tmp_path / "trust", publisher.root_path).verify(publisher.bundle)
    assert refused.value.attack == "freeze"


def test_clock_that_is_years_ahead_is_named(tmp_path: Path) -> None:
    """Everything seems to have ended: the clock is more likely to be wrong than the mesh to be given up."""
    publisher = Publisher(tmp_path / "repository", Lifetimes(root=900, targets=900, online=30))
    publisher.ahead(-800)
    publisher.refresh()
    with pytest.raises(MetadataInvalid, match="set it if it is wrong") as refused:
        Trust(tmp_path / "trust", publisher.root_path).verify(publisher.bundle)
    assert refused.value.attack == "clock"


@pytest.mark.parametrize(("days", "match"), [(-20_000, "never set"), (-300, "was taken on")])
def test_clock_that_is_set_back_is_named(
    victim: Victim, monkeypatch: pytest.MonkeyPatch, days: int, match: str
) -> None:
    """A clock of the past would bring expired metadata to life again."""
    clock_at(monkeypatch, days)
    assert match in victim.refuses(victim.new, "clock")


# --- endless and extraneous data, mix-and-match ----------------------------------------------------------------------
def test_attack_endless_data_is_refused_before_it_is_read(victim: Victim) -> None:
    """More bytes than a chunk, more files than a bundle has, and a file that is longer than was signed."""
    victim.refuses(packed({"timestamp.json": bytes(MAX_CHUNK_BYTES)}), "endless data")
    victim.refuses(packed({f"{number}.root.json": b"" for number in range(1, 1_100)}), "endless data")
    name = named(victim.new, "snapshot")
    victim.refuses(victim.new | {name: victim.new[name] + b" " * 100_000}, "endless data")


def test_attack_endless_roots_are_refused(victim: Victim) -> None:
    """A chain of roots that are copies of one another."""
    roots = {f"{version}.root.json": victim.new["1.root.json"] for version in range(2, 100)}
    victim.refuses(victim.new | roots, "rollback")


@pytest.mark.parametrize("name", ["9.models.json", "2.mirrors.json", "1.snapshot.json", "models.json", "readme.json"])
def test_attack_extraneous_data_is_refused(victim: Victim, name: str) -> None:
    """What nothing names would travel from node to node all the same."""
    assert name not in victim.new
    victim.refuses(victim.new | {name: victim.new["timestamp.json"]}, "extraneous data")


@pytest.mark.parametrize("name", ["../timestamp.json", "/etc/passwd", "x/y.json", "a" * 300, "1.root.json\0"])
def test_attack_file_name_that_leads_elsewhere_is_refused(victim: Victim, name: str) -> None:
    """A bundle must not write beside its folder."""
    victim.refuses(victim.new | {name: b"{}"}, "extraneous data")


@pytest.mark.parametrize("role", ["snapshot", "targets", "models", "rollouts"])
def test_attack_mix_and_match_of_old_and_new_files_is_refused(victim: Victim, role: str) -> None:
    """Each file is right by itself, and was never published beside the others."""
    with victim.publisher.changing() as repository:
        repository.put("rollouts/1.json", b"{}")
        repository._changed.add("targets")
    files = victim.publisher.files
    name = named(files, role)
    victim.refuses(files | {name: victim.old[named(victim.old, role)]}, "mix-and-match")
    del files[name]
    files[named(victim.old, role)] = victim.old[named(victim.old, role)]
    victim.refuses(files, "withheld")


def _junk(content: Any) -> None:
    content["junk"] = 1


def _signature_by_nobody(content: Any) -> None:
    content["signatures"].append({"keyid": "ab" * 32, "sig": "cd" * 64})


def _signature_field(content: Any) -> None:
    content["signatures"][0]["junk"] = "x" * 100


def _signature_case(content: Any) -> None:
    content["signatures"][0]["sig"] = content["signatures"][0]["sig"].upper()


def _signature_spaces(content: Any) -> None:
    content["signatures"][0]["sig"] = content["signatures"][0]["sig"] + " "


def _signature_wrong(content: Any) -> None:
    content["signatures"][-1]["sig"] = "00" * 64


@pytest.mark.parametrize("name", ["timestamp.json", "1.root.json", "2.root.json"])
@pytest.mark.parametrize(
    "change", [_junk, _signature_by_nobody, _signature_field, _signature_case, _signature_spaces, _signature_wrong]
)
def test_attack_unsigned_parts_that_are_changed_are_refused(
    victim: Victim, name: str, change: Callable[[Any], None]
) -> None:
    """Whoever had taken such a bundle would refuse the relay's own, and blame whoever hands it on."""
    victim.publisher.rotate("snapshot", roots=3)
    files = victim.publisher.files
    content = json.loads(files[name])
    change(content)
    forged = json.dumps(content, separators=(",", ":"), sort_keys=True).encode()
    with pytest.raises(MetadataInvalid):
        victim.trust.verify(packed(files | {name: forged}))
    assert victim.trust.current() == victim.trusted
    assert victim.trust.verify(packed(files)).root_version == 2


@pytest.mark.parametrize("name", ["timestamp.json", "1.root.json"])
def test_attack_file_that_is_written_differently_is_refused(victim: Victim, name: str) -> None:
    """The same content with spaces, or with a key twice."""
    for forged in (json.dumps(json.loads(victim.new[name])).encode(), b'{"signatures":[],' + victim.new[name][1:]):
        victim.refuses(victim.new | {name: forged}, "extraneous data")


def test_root_that_lost_a_signature_on_the_way_does_not_keep_the_whole_one_out(victim: Victim) -> None:
    """Two of three signatures are enough, so a liar may leave one away. What others hand on stays good."""
    victim.publisher.rotate("snapshot", roots=3)
    files = victim.publisher.files
    content = json.loads(files["2.root.json"])
    assert len(content["signatures"]) == 3
    del content["signatures"][1]
    shorter = json.dumps(content, separators=(",", ":"), sort_keys=True).encode()
    assert victim.trust.verify(packed(files | {"2.root.json": shorter})).root_version == 2
    assert victim.trust.verify(packed(files)).root_version == 2
    victim.publisher.release(3)
    assert len(victim.trust.verify(victim.publisher.bundle).releases) == 3


def test_attack_two_timestamps_of_one_version_are_refused(victim: Victim) -> None:
    """A relay that tells two meshes two things."""
    other = resigned(
        victim.old["timestamp.json"],
        lambda signed: setattr(signed, "expires", signed.expires + timedelta(days=1)),
        victim.publisher.signers["timestamp"],
    )
    victim.refuses(victim.old | {"timestamp.json": other}, "mix-and-match")


def test_attack_metadata_of_one_role_in_place_of_another_is_refused(victim: Victim) -> None:
    """Names of files say nothing."""
    for name in victim.new:
        for other in victim.new:
            if name != other:
                with pytest.raises(MetadataInvalid):
                    victim.trust.verify(packed(victim.new | {name: victim.new[other]}))
    assert victim.trust.current() == victim.trusted


def test_attack_file_that_is_held_back_is_named(victim: Victim) -> None:
    """A bundle is whole, or it is not taken."""
    for name in victim.new:
        files = dict(victim.new)
        del files[name]
        assert name.removesuffix(".json").split(".")[-1] in victim.refuses(files, "withheld")


# --- anything at all -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"null", b"[]", b'{"signed": {}}', b'{"signed": {}, "signatures": []}', b"[" * 100_000,
        b'{"signatures": [], "signed": {"_type": "timestamp", "version": 1e999}}',
        b'{"signatures": [], "signed": {"_type": "timestamp", "version": ' + b"9" * 5_000 + b"}}",
        b'{"a":' * 50_000, b"\xff\xfe", b'"\\ud800"',
    ],
)  # fmt: skip
def test_malformed_metadata_in_any_place_is_refused(victim: Victim, content: bytes) -> None:
    """One kind of error, whatever the parser meets."""
    for name in victim.new:
        with pytest.raises(MetadataInvalid):
            victim.trust.verify(packed(victim.new | {name: content}))
    assert victim.trust.current() == victim.trusted


@pytest.mark.parametrize(
    "data", [b"", b"\x80", b"\xc1", b"\xdf\xff\xff\xff\xff", b"\x81\xa1a\xa1b", b"\x93\x01\x02\x03"]
)
def test_malformed_bundle_is_refused(victim: Victim, data: bytes) -> None:
    """What is no bundle at all."""
    with pytest.raises(MetadataInvalid):
        victim.trust.verify(data)


def test_bundle_written_in_another_way_is_refused(victim: Victim) -> None:
    """One set of files has one bundle, so that its digest names it."""
    import msgspec

    victim.refuses(msgspec.msgpack.encode(dict(sorted(victim.new.items(), reverse=True))), "malformed")


@pytest.mark.parametrize("seed", range(4))
def test_mutated_bundle_raises_one_error_only(victim: Victim, seed: int) -> None:
    """Random damage: a bit, a cut, bytes that are moved or doubled."""
    random, bundle = Random(seed), packed(victim.new)
    changes: list[Callable[[bytearray], None]] = [
        lambda data: data.__setitem__(random.randrange(len(data)), random.randrange(256)),
        lambda data: data.__delitem__(slice(random.randrange(len(data)), None)),
        lambda data: data.extend(data[random.randrange(len(data)) :]),
        lambda data: data.__delitem__(slice((at := random.randrange(len(data))), at + random.randrange(64))),
    ]
    for _ in range(60):
        data = bytearray(bundle)
        for _ in range(random.randrange(1, 4)):
            random.choice(changes)(data)
        if bytes(data) == bundle:
            continue
        with pytest.raises(MetadataInvalid):
            victim.trust.verify(bytes(data))
    assert victim.trust.current() == victim.trusted
