"""A local network for real processes: one network namespace for each computer, joined by a bridge.

Cables are veth pairs from a computer to the bridge, which is in a namespace of its own. They can be plugged in and out,
switched off and on, and get any addresses while programs run. Nothing has a name under ``/run/netns``: a namespace
lives as long as a descriptor or a process holds it, so nothing can be left behind.

Programs start with a private ``/etc/hosts`` where that is asked for. It can be rewritten while they run.

It needs Linux, root, and the programs ``ip``, ``nsenter``, ``unshare`` and ``setpriv``.
"""

import contextlib
import ctypes
import functools
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

_PROGRAMS: Final = ("ip", "nsenter", "unshare", "setpriv", "mount", "sh")
_CLONE_NEWNET: Final = 0x40000000
_BRIDGE: Final = "street"
_COMMAND_S: Final = 120.0
_EXPEDITED: Final = 46 << 2
"""The type of service of packets with the DSCP EF."""
_SETTINGS: Final = {"promote_secondaries": 1, "arp_ignore": 1, "arp_announce": 2}


class LanFailed(Exception):
    """The network can't be made, or a change of it failed; says what."""


def why_not() -> str | None:
    """Why this process can't make such a network; None: it can."""
    if sys.platform != "linux":
        return f"networks of namespaces need Linux, this is {sys.platform}"
    if os.geteuid() != 0:
        return "networks of namespaces need root"
    if missing := [program for program in _PROGRAMS if shutil.which(program) is None]:
        return f"networks of namespaces need the program {missing[0]}"
    try:
        with Lan() as lan:
            lan.computer("probe").plug("eth0", "10.99.0.1/24")
    except LanFailed as error:
        return str(error)
    return None


class Lan:
    """One bridge, and the computers at it. ``close`` gives up all that no process uses."""

    def __init__(self) -> None:
        """:raises LanFailed: this process may not make namespaces."""
        self.computers: dict[str, Computer] = {}
        self._ports = 0
        self.namespace = _new_namespace()
        try:
            self.run(self.namespace, "link", "add", "name", _BRIDGE, "type", "bridge")
            self.run(self.namespace, "link", "set", _BRIDGE, "up")
        except LanFailed:
            os.close(self.namespace)
            raise

    def computer(self, name: str, loopback: bool = True) -> "Computer":
        """A new computer without a cable. When the first address of an interface is removed, the others stay, as
        systemd sets it. It answers for an address only on the interface that has it, as computers with two interfaces
        on one network need it: otherwise neighbours send to the wrong one, up to a minute after it was unplugged."""
        made = self.computers[name] = Computer(self, name, _new_namespace())
        settings = "\n".join(f"echo {value} > /proc/sys/net/ipv4/conf/all/{name}" for name, value in _SETTINGS.items())
        _run_in(made.namespace, ["sh", "-c", settings])
        if loopback:
            self.run(made.namespace, "link", "set", "lo", "up")
        return made

    def cable(self, computer: "Computer", interface: str) -> str:
        """A new cable from a computer to the bridge, not switched on at the computer's end; returns the other end."""
        self._ports += 1
        port, end = f"port{self._ports}", f"/proc/self/fd/{computer.namespace}"
        self.run(
            self.namespace, "link", "add", "name", port, "type", "veth", "peer", "name", interface, "netns", end,
            inherited=(computer.namespace,),
        )  # fmt: skip
        self.run(self.namespace, "link", "set", port, "master", _BRIDGE, "up")
        return port

    def run(self, namespace: int, *arguments: str, inherited: Sequence[int] = ()) -> None:
        """Run ``ip`` in a namespace. :raises LanFailed: it says no."""
        _run_in(namespace, ["ip", *arguments], inherited)

    def close(self) -> None:
        """Let the namespaces go. Idempotent."""
        for namespace in (self.namespace, *(computer.namespace for computer in self.computers.values())):
            with contextlib.suppress(OSError):
                os.close(namespace)
        self.computers.clear()
        self.namespace = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Computer:
    """One computer of a :class:`Lan`. Changes raise :class:`LanFailed` when ``ip`` says no."""

    def __init__(self, lan: Lan, name: str, namespace: int) -> None:
        self._lan, self.name, self.namespace = lan, name, namespace
        self._ports: dict[str, str] = {}

    def plug(self, interface: str, *addresses: str) -> None:
        """Plug a cable in, and switch it on: a new interface with these addresses (``10.0.0.1/24``)."""
        self._ports[interface] = self._lan.cable(self, interface)
        for address in addresses:
            self.add(interface, address)
        self.up(interface)

    def slow(self, interface: str, mbit_per_s: float, burst_kib: int = 64) -> None:
        """Let a cable carry no more than that in each direction. ``burst_kib``: what goes at once after a pause. Needs
        the program ``tc``."""
        rate = f"{int(mbit_per_s * 1_000)}kbit"
        limit = ("root", "tbf", "rate", rate, "burst", f"{burst_kib}kb", "latency", "200ms")
        for namespace, device in self._ends(interface):
            _run_in(namespace, ["tc", "qdisc", "add", "dev", device, *limit])

    def rank(self, interface: str, mbit_per_s: float, queue_kib: int = 100) -> None:
        """Let a cable carry no more than that in each direction, and packets marked as expedited (DSCP EF) first, as
        Wi-Fi does and access networks can. ``queue_kib``: what may wait behind them. The kernel hands each packet to it
        alone: at 8 Mb/s a bundle of 64 KiB would hold up everything for 64 ms. Needs the program ``tc``."""
        rate = f"{int(mbit_per_s * 1_000)}kbit"
        expedited, rest = ("1:1", f"{int(mbit_per_s * 900)}kbit", "0"), ("1:2", f"{int(mbit_per_s * 100)}kbit", "1")
        for namespace, device in self._ends(interface):
            run = functools.partial(_run_in, namespace)
            run(["ip", "link", "set", "dev", device, "gso_max_size", "1514", "gso_max_segs", "1"])
            run(["tc", "qdisc", "add", "dev", device, "root", "handle", "1:", "htb", "default", "2"])
            top = ["tc", "class", "add", "dev", device, "parent"]
            run([*top, "1:", "classid", "1:9", "htb", "rate", rate, "ceil", rate, "burst", "4kb", "cburst", "4kb"])
            for name, least, rank in (expedited, rest):
                run([*top, "1:9", "classid", name, "htb", "rate", least, "ceil", rate, "prio", rank, "burst", "2kb",
                    "cburst", "2kb", "quantum", "1514"])  # fmt: skip
                run(["tc", "qdisc", "add", "dev", device, "parent", name, "bfifo", "limit", f"{queue_kib}kb"])
            marked = ["u32", "match", "ip", "tos", f"{_EXPEDITED:#x}", "0xfc"]
            run(["tc", "filter", "add", "dev", device, "parent", "1:", "protocol", "ip", *marked, "flowid", "1:1"])

    def _ends(self, interface: str) -> tuple[tuple[int, str], tuple[int, str]]:
        """Namespace and device of both ends of a cable."""
        return (self.namespace, interface), (self._lan.namespace, self._ports[interface])

    def sent_bytes(self, interface: str) -> int:
        """What has left through a cable since it was plugged in."""
        shown = json.loads(_run_in(self.namespace, ["ip", "-s", "-j", "link", "show", interface]))
        return int(shown[0]["stats64"]["tx"]["bytes"])

    def unplug(self, interface: str) -> None:
        """Remove an interface with its cable."""
        self._ip("link", "del", "dev", interface)

    def up(self, interface: str) -> None:
        """Switch an interface on."""
        self._ip("link", "set", "dev", interface, "up")

    def down(self, interface: str) -> None:
        """Switch an interface off. It keeps its IPv4 addresses."""
        self._ip("link", "set", "dev", interface, "down")

    def add(self, interface: str, address: str) -> None:
        """Give an interface one more address."""
        self._ip("address", "add", address, "broadcast", "+", "dev", interface)

    def remove(self, interface: str, address: str) -> None:
        """Take an address away."""
        self._ip("address", "del", address, "dev", interface)

    def addresses(self) -> str:
        """What ``ip`` tells of its addresses."""
        return _run_in(self.namespace, ["ip", "-brief", "-4", "address"])

    def _ip(self, *arguments: str) -> None:
        self._lan.run(self.namespace, *arguments)

    def start(self, command: Sequence[str], hosts: Path | None = None, **options: Any) -> "subprocess.Popen[str]":
        """Start a program on this computer, bound to the life of this process. ``hosts``: its ``/etc/hosts``, which may
        be rewritten in place later. ``options``: those of :class:`subprocess.Popen`."""
        enter = ["setpriv", "--pdeathsig", "KILL", "nsenter", f"--net=/proc/self/fd/{self.namespace}"]
        if hosts is not None:
            script = 'mount --bind "$0" /etc/hosts && exec "$@"'
            enter += ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, str(hosts)]
        return subprocess.Popen([*enter, *command], pass_fds=(self.namespace,), text=True, **options)


def _run_in(namespace: int, command: Sequence[str], inherited: Sequence[int] = ()) -> str:
    """Run a program in a namespace to its end, and return what it printed. :raises LanFailed: its status is not 0."""
    done = subprocess.run(
        ["nsenter", f"--net=/proc/self/fd/{namespace}", *command], pass_fds=(namespace, *inherited),
        capture_output=True, text=True, timeout=_COMMAND_S, check=False,
    )  # fmt: skip
    if done.returncode:
        raise LanFailed(f"'{' '.join(command)}' failed: {done.stderr.strip() or done.returncode}")
    return done.stdout


def _new_namespace() -> int:
    """The descriptor of a new network namespace. A thread makes it, and ends in it."""
    found: list[int | str] = []

    def make() -> None:
        library = ctypes.CDLL(None, use_errno=True)
        if library.unshare(_CLONE_NEWNET):
            found.append(os.strerror(ctypes.get_errno()))
        else:
            found.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    (made,) = found
    if isinstance(made, str):
        raise LanFailed(f"this process may not make a network namespace ({made}): it needs the capability SYS_ADMIN")
    return made
