"""The checks of the doctor. Each only reads and probes; a finding that is not ``ok`` says what to do."""

import contextlib
import math
import os
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any, Final, Literal

from meshnode.cli.additions import check_applications, check_egress, check_functions, check_mqtt, check_rules
from meshnode.cli.finding import Finding
from meshnode.cli.probes import (
    ProbeFailed,
    interface_addresses,
    kernel_clock,
    mdns_port_shared,
    multicast_returns,
    tls_identity,
)
from meshnode.config.sections import NodeConfig
from meshnode.console.node_api import NodeApi
from meshnode.grpc.libraries import why_not_there
from meshnode.grpc.section import GrpcSection
from meshnode.history.section import HistorySection
from meshnode.http.section import HttpSection
from meshnode.identity import inspect
from meshnode.identity.inspection import OLDEST_UTC_S
from meshnode.identity.state import StateFolder
from meshnode.inference.section import InferenceSection, ModelsSection
from meshnode.loading import load
from meshnode.local.section import LocalSection, socket_of
from meshnode.local.server import check_place
from meshnode.part import Part
from meshnode.records.section import CarryingSection, CurationRulesSection, OutboxSection, RelaySection
from meshnode.sensors.section import SensorsSection
from protocols.access import LINK_ROLES
from protocols.base.errors import ConfigError, IdentityError, MeshError, StorageError
from protocols.base.ids import NodeId, PeerIdentity, Role

_DAYS_TO_RENEW: Final = 7
_MAX_SEEDS: Final = 8
_MAX_LINKS: Final = 16
_RECENT_S: Final = 120
"""A link that still fails is tried again within 30 s, so older failures are over."""
_RESERVE_BYTES: Final = 64 * 1024 * 1024


def examine(config_path: Path, parts: Sequence[Part] = ()) -> Iterator[Finding]:
    """Run all checks, in the order in which a node would meet what they look at."""
    try:
        config = load(config_path, parts)
    except ConfigError as error:
        yield Finding("fail", "config", str(error))
        return
    yield Finding("ok", "config", f"{config_path}: node {config.node.id}")
    running = _running(config)
    if running is not None:
        if running.get("waiting"):
            yield Finding("warn", "node", f"{config.node.id} waits to take part, up {running['uptime_s']:.0f} s")
        else:
            yield Finding("ok", "node", f"{config.node.id} runs, up {running['uptime_s']:.0f} s")
        yield from _troubles(running)
        yield from _announced(running)
        yield from _links(running)
    identity: PeerIdentity | None = None
    for finding, proven in _certificate(config):
        identity = proven or identity
        yield finding
    yield from _clock(config)
    yield from _state(config, running)
    if running is None:  # a running node says itself what is wrong, and nobody else may open the file
        yield from _outbox(config)
    yield from check_rules(config)
    yield from check_egress(config)
    yield from check_functions(config, config_path.parent)
    yield from check_applications(config)
    yield from check_mqtt(config, config_path.parent)
    yield from _ports(config, running)
    if running is None:
        yield from _local(config)
        if config.given(GrpcSection) is not None and (why := why_not_there()) is not None:
            yield Finding("fail", "grpc", why)
    yield from _multicast(config, running)
    yield from _models(config)
    yield from _sensors(config, config_path.parent, identity)
    if identity is not None:
        yield from _relay(config, identity)
        if running is None:  # a second connection in its name could disturb its neighbours
            yield from _seeds(config, identity)


def _running(config: NodeConfig) -> dict[str, Any] | None:
    """The view of the running node, if it runs and can be asked."""
    http = config.of(HttpSection)
    if not http.enabled or http.port == 0:
        return None
    try:
        node: dict[str, Any] = NodeApi(http.host, http.port, "[http]").get("/v1/node")
        return node if node["id"] == config.node.id else None
    except (MeshError, KeyError, TypeError):
        return None


def _troubles(running: dict[str, Any]) -> Iterator[Finding]:
    """What the running node says of itself."""
    for trouble in running.get("troubles", []):  # a node of an older version does not tell
        named = f"{trouble['name']}: " if trouble["name"] else ""
        yield Finding("fail", trouble["part"], f"{named}{trouble['why']} (for {trouble['since_s']:.0f} s)")


def _announced(running: dict[str, Any]) -> Iterator[Finding]:
    """What the running node announces, and where."""
    told = running.get("discovery")  # a node of an older version, or without mDNS, does not tell
    if not told or any(trouble["part"] == "discovery" for trouble in running["troubles"]):
        return
    places = ", ".join(f"{place['name']} ({place['address']})" for place in told["interfaces"])
    yield Finding("ok", "discovery", f"announces {', '.join(told['addresses'])} on {places}, last "
                  f"{told['announced_s'] or 0:.0f} s ago; hears {len(told['heard'])} other nodes")  # fmt: skip


def _links(running: dict[str, Any]) -> Iterator[Finding]:
    """Links that the running node could not open lately."""
    failures = running.get("link_failures", [])  # a node of an older version does not tell
    recent = [failed for failed in failures if failed["last_s"] <= _RECENT_S][-_MAX_LINKS:]
    for failed in recent:
        yield Finding("warn", "link", f"{failed['peer']}: {failed['why']} ({failed['kind']}, {failed['count']} times, "
                      f"last {failed['last_s']:.0f} s ago)")  # fmt: skip
    if not recent:
        yield Finding("ok", "link", f"none failed in the last {_RECENT_S} s")


def _certificate(config: NodeConfig) -> Iterator[tuple[Finding, PeerIdentity | None]]:
    files = config.identity
    try:
        report = inspect(files.certificate, files.key, files.authority)
    except IdentityError as error:
        yield Finding("fail", "certificate", str(error)), None
        return
    for problem in report.problems:
        if problem not in report.clock_problems:  # these are of the clock
            yield Finding("fail", "certificate", problem), None
    peer = report.identity
    if peer is None:
        return
    if peer.node != config.node.id:
        yield Finding("fail", "certificate", f"{files.certificate} belongs to {peer.node!r} and [node] id is "
                      f"{config.node.id!r}: use its id, or issue a certificate for this one"), None  # fmt: skip
    if peer.role not in LINK_ROLES:
        yield Finding("fail", "certificate", f"{files.certificate} has the role {peer.role.value!r}, which no node can "
                      "have: issue one for a vehicle, an rsu or a tool"), None  # fmt: skip
    if report.problems:
        return
    days = (report.not_after - datetime.now(UTC)).total_seconds() / 86_400
    text = f"{peer.role.value} {peer.node} of mesh {peer.mesh}, {days:.1f} days left"
    if days < _DAYS_TO_RENEW:
        text += ": renew it with 'meshnode mesh issue' and restart the node"
    yield Finding("warn" if days < _DAYS_TO_RENEW else "ok", "certificate", text), peer


def _clock(config: NodeConfig) -> Iterator[Finding]:
    now_s, files = time.time(), config.identity
    if now_s < OLDEST_UTC_S:
        yield Finding("fail", "clock", f"this host's clock shows {datetime.now(UTC):%Y-%m-%d}: set it; a node waits "
                      "meanwhile")  # fmt: skip
        return
    ends_s = math.inf
    with contextlib.suppress(IdentityError):  # told by the check of the certificate
        report = inspect(files.certificate, files.key, files.authority)
        if report.clock_problems:
            yield from (Finding("fail", "clock", f"{problem}; a node waits meanwhile")
                        for problem in report.clock_problems)  # fmt: skip
            return
        ends_s = report.not_after.timestamp()
    try:
        last_s = int((config.node.state_dir / "incarnation").read_text())
    except (OSError, ValueError):
        last_s = 0
    if ends_s < last_s:
        yield Finding("ok", "clock", "a former start of the node was beyond the end of its certificate, by a clock "
                      "that was wrong: nothing needs to be done")  # fmt: skip
    elif last_s > now_s + 3_600:
        yield Finding("warn", "clock", f"it is {(last_s - now_s) / 3_600:.1f} h behind the node's last start: set it")
    clock = kernel_clock()
    promised_ms = config.node.clock_uncertainty_ms
    if clock is None:
        yield Finding("ok", "clock", f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC; this system doesn't say "
                      "whether it is synchronised")  # fmt: skip
    elif not clock.synchronised:
        yield Finding("warn", "clock", "the kernel says that nothing synchronises it: run chrony or systemd-timesyncd, "
                      f"or set [node] clock_uncertainty_ms (now {promised_ms:g}) to its largest error")  # fmt: skip
    elif clock.error_ms > promised_ms:
        yield Finding("warn", "clock", f"it may be {clock.error_ms:.1f} ms off, and [node] clock_uncertainty_ms is "
                      f"{promised_ms:g}: raise it, or use a better time source")  # fmt: skip
    else:
        yield Finding("ok", "clock", f"synchronised, {clock.error_ms:.1f} ms off at most by its own estimate")


def _state(config: NodeConfig, running: dict[str, Any] | None) -> Iterator[Finding]:
    folder = config.node.state_dir
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        yield Finding("fail", "state", f"this user may not write to {existing}, or it is not a folder: change its "
                      "owner, or set [node] state_dir to another folder")  # fmt: skip
        return
    if existing == folder:
        try:
            StateFolder(folder).close()
        except StorageError as error:
            if running is None:
                yield Finding("fail", "state", str(error))
                return
    free_bytes, outbox, history = (
        shutil.disk_usage(existing).free,
        config.of(OutboxSection),
        config.given(HistorySection),
    )
    if free_bytes < outbox.max_bytes + _RESERVE_BYTES:
        yield Finding("warn", "state", f"{free_bytes // 2**20} MiB are free and the outbox may take "
                      f"{outbox.max_mib}: free some disk, or lower [outbox] max_mib")  # fmt: skip
    elif history is not None and free_bytes < outbox.max_bytes + history.max_bytes + _RESERVE_BYTES:
        yield Finding("warn", "state", f"{free_bytes // 2**20} MiB are free, and outbox and history may take "
                      f"{outbox.max_mib + history.max_mib}: free some disk, or lower [history] max_mib")  # fmt: skip
    elif free_bytes < (together := _most_bytes(config)) + _RESERVE_BYTES:
        yield Finding("warn", "state", f"{free_bytes // 2**20} MiB are free, and records, history and what is carried "
                      f"may take {together // 2**20}: free some disk, or lower [carrying] max_mib")  # fmt: skip
    else:
        used = "in use by this node" if running is not None else "not in use"
        yield Finding("ok", "state", f"{folder}: writable, {used}, {free_bytes // 2**20} MiB free")


def _most_bytes(config: NodeConfig) -> int:
    """What outbox, history and the batches of others may take of the disk."""
    history, carrying = config.given(HistorySection), config.given(CarryingSection)
    carries = carrying is not None and carrying.carry and config.given(RelaySection) is not None
    return (
        config.of(OutboxSection).max_bytes
        + (0 if history is None else history.max_bytes)
        + (carrying.max_bytes if carrying is not None and carries else 0)
    )


def _outbox(config: NodeConfig) -> Iterator[Finding]:
    if config.given(RelaySection) is None and not config.of(CurationRulesSection).rules:
        return
    from meshnode.records.outbox_file import OutboxFile

    path = config.node.state_dir / "outbox.sqlite"
    kept = [file for file in path.parent.glob(f"{path.name}.damaged-*") if not file.name.endswith("-wal")]
    for file in sorted(kept):
        yield Finding("warn", "outbox", f"{file} was damaged and moved aside: look into it with 'sqlite3 {file.name} "
                      ".recover', then remove it")  # fmt: skip
    try:
        OutboxFile(path).check()
    except StorageError as error:
        yield Finding("fail", "outbox", str(error))
    else:
        yield Finding("ok", "outbox", f"{path}" if path.exists() else "there is none yet")


def _ports(config: NodeConfig, running: dict[str, Any] | None) -> Iterator[Finding]:
    asked = [("inbox", "[listen]", config.listen.host, config.listen.port, "port")]
    http = config.of(HttpSection)
    if http.enabled:
        asked.append(("http", "[http]", http.host, http.port, "http_port"))
    if (section := config.given(GrpcSection)) is not None:
        asked.append(("grpc", "[grpc]", section.host, section.port, "grpc_port"))
    for check, table, host, port, field in asked:
        if running is not None and running.get(field) and port in (0, running[field]):
            yield Finding("ok", check, f"port {running[field]}, in use by this node")
            continue
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
                probe.listen(1)
        except OSError as error:
            yield Finding("fail", check, f"{host} port {port} can't be used ({error.strerror}): stop the program that "
                          f"uses it, or set {table} host and port to others (port 0: any free one)")  # fmt: skip
        else:
            yield Finding("ok", check, f"{host} port {port} is free" if port else f"{host}, any free port")


def _local(config: NodeConfig) -> Iterator[Finding]:
    path = socket_of(config)
    if not config.of(LocalSection).enabled or not path.parent.exists():  # the node makes its state folder
        return
    try:
        check_place(path)
    except MeshError as error:
        yield Finding("fail", "local", str(error))


def _multicast(config: NodeConfig, running: dict[str, Any] | None) -> Iterator[Finding]:
    if not config.discovery.mdns:
        status: Literal["ok", "warn"] = "ok" if config.discovery.seeds else "warn"
        hint = "" if config.discovery.seeds else ", but there are no seeds: only nodes that dial this one are found"
        yield Finding(status, "multicast", f"not needed: [discovery] mdns = false{hint}")
        return
    addresses = interface_addresses(config.discovery.interfaces)
    if not addresses:
        yield Finding("warn", "multicast", "no interface with an IPv4 address is up: connect one, or set [discovery] "
                      "mdns = false and seeds")  # fmt: skip
        return
    used = None if running is None or not running.get("discovery") else running["discovery"]["interfaces"]
    if (reason := mdns_port_shared()) is not None:
        yield Finding("fail", "multicast", f"UDP port 5353 can't be shared ({reason}): another mDNS program does "
                      "not share it: configure that program to share the port, or stop it")  # fmt: skip
    worked = 0
    findings = []
    for name, address in addresses:
        reason = multicast_returns(address)
        worked += reason is None
        if reason is None and used is not None and name not in {place["name"] for place in used}:
            findings.append(Finding("warn", "multicast", f"{name} ({address}): sent and received, but the running node "
                            "does not use it: see its log"))  # fmt: skip
            continue
        if reason is None:
            findings.append(Finding("ok", "multicast", f"{name} ({address}): sent and received"))
        else:
            findings.append(Finding("warn", "multicast", f"{name} ({address}): {reason}; allow UDP to 224.0.0.251 in "
                            "the firewall, or list other [discovery] interfaces"))  # fmt: skip
    yield from findings
    if not worked:
        yield Finding("fail", "multicast", "it works on no interface, so mDNS finds nobody: repair one, or set "
                      "[discovery] mdns = false and seeds")  # fmt: skip


def _models(config: NodeConfig) -> Iterator[Finding]:
    models = config.of(ModelsSection).models
    if not models:
        return
    from meshnode.models import load_model
    from meshnode.models.cutting import NEEDS, can_cut
    from meshnode.models.worker import Workers

    how = config.of(InferenceSection)
    with contextlib.closing(Workers()) as workers:  # a model that crashes must not take the doctor with it
        load = workers.load if how.isolation == "process" else load_model
        for name, section in models.items():
            spec = section.spec(name, how.providers)
            if spec is None:
                yield Finding("ok", "model", f"{name}: computed by neighbours that have {(section.digest or '')[:12]}")
                continue
            if section.split != "off" and not can_cut():
                yield Finding("warn" if section.whole else "fail", "model", f"{name}: it can't be split: {NEEDS}")
            if not section.whole:
                yield Finding("ok", "model", f"{name}: only its own stages are loaded, once a plan is made")
                continue
            started_s = time.monotonic()
            try:
                model = load(spec)
                if (zeros := model.zeros()) is not None:
                    model.run(zeros)  # as the node does before it offers the model
            except MeshError as error:
                yield Finding("fail", "model", str(error))
                continue
            took_s, takes = time.monotonic() - started_s, ", ".join(map(str, model.inputs))
            held = f", golden vectors held: {len(model.manifest.golden)}" if model.manifest.golden else ""
            yield Finding("ok", "model", f"{name}: {model.digest[:12]}, loaded in {took_s:.1f} s, takes {takes}{held}")
            for output, why in model.left_out.items():
                yield Finding("warn", "model", f"{name}: the output {output!r} is left out: {why}")
            for note in model.notes:
                yield Finding("warn", "model", f"{name}: {note}")


def _sensors(config: NodeConfig, folder: Path, identity: PeerIdentity | None) -> Iterator[Finding]:
    sensors = config.of(SensorsSection).sensors
    if not sensors:
        return
    from meshnode.sensors import DriverContext, checked, create_driver

    role = identity.role if identity is not None else Role.VEHICLE
    for name, section in sensors.items():
        context = DriverContext(NodeId(config.node.id), folder, Random(name), role, sensor=name, logs_skipped=False)
        try:
            said = checked(create_driver(section.driver, section.options, context))
        except MeshError as error:
            yield Finding("fail", "sensor", f"[sensors.{name}]: {error}")
        else:
            seen = f", {said}" if said else ""
            if context.samples_skipped:
                skipped = f"{context.samples_skipped} samples are skipped, the last: {context.last_skipped}"
                yield Finding("warn", "sensor", f"{name}: {section.driver}{seen}, {skipped}")
            else:
                yield Finding("ok", "sensor", f"{name}: {section.driver}{seen}")


def _relay(config: NodeConfig, identity: PeerIdentity) -> Iterator[Finding]:
    relay = config.given(RelaySection)
    if relay is None:
        return
    try:
        peer = tls_identity(relay.address, config.identity.credentials)
    except ProbeFailed as error:
        status: Literal["warn", "fail"] = "warn" if error.absent else "fail"
        later = "; records wait in the outbox meanwhile" if error.absent else ""
        yield Finding(status, "relay", f"{relay.address}: {error}{later}")
        return
    if peer.mesh != identity.mesh or peer.role is not Role.RELAY or (relay.id is not None and peer.node != relay.id):
        wanted = relay.id or "a relay"
        yield Finding("fail", "relay", f"{relay.address} is {peer.role.value} {peer.node} of mesh {peer.mesh}, not "
                      f"{wanted} of {identity.mesh}: correct [relay] address or id")  # fmt: skip
    else:
        yield Finding("ok", "relay", f"{relay.address} is relay {peer.node}")


def _seeds(config: NodeConfig, identity: PeerIdentity) -> Iterator[Finding]:
    for address in config.discovery.seeds[:_MAX_SEEDS]:
        try:
            peer = tls_identity(address, config.identity.credentials)
        except ProbeFailed as error:
            yield Finding("warn", "seed", f"{address}: {error}")
            continue
        if peer.mesh != identity.mesh or peer.role not in LINK_ROLES:
            yield Finding("warn", "seed", f"{address} is {peer.role.value} {peer.node} of mesh {peer.mesh}, not a node "
                          f"of {identity.mesh}: correct [discovery] seeds")  # fmt: skip
        else:
            yield Finding("ok", "seed", f"{address} is {peer.role.value} {peer.node}")
