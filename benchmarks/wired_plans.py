"""``python -m benchmarks.wired_plans``: as ``benchmarks.plans``, with real nodes.

A vehicle that is twenty times slower than the roadside unit has a private model, and the unit runs stages of it. Both
are real processes with mutual TLS on computers of their own (:mod:`benchmarks.lan`), and the wire between them carries
1, 10 or 100 Mb/s. At each speed the vehicle first plans for itself, without knowing the wire, and asks for one
inference after the other. Then each possible plan is forced on it in turn: the first stage at home, one at the unit,
and what is left at home. Then it computes all at home. Bar: the median of the requests by its own choice is at most a
tenth longer than that of the best of all others.

The model makes its input smaller and smaller, with work between: three loops that take about 15, 45 and 40 % of the
time. It needs Linux, root, the program ``tc``, and the extra ``meshnode[split]``. It prints a table and writes
``build/wired_plans.json``.
"""

import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from benchmarks import command
from benchmarks.children import ChildFailed
from benchmarks.command import between, finish, measuring
from benchmarks.lan import Computer, Lan, why_not
from benchmarks.lines import LineProcess
from benchmarks.plan_node import Answers, Listening, PlanOrder, PlanSetting
from meshnode.identity import create_mesh, issue

ROOT: Final = Path(__file__).resolve().parents[1]
SPEEDS_MBPS: Final = {1.0: 4, 10.0: 8, 100.0: 64}
"""And what the wire lets through at once after a pause, in KiB: far less than what crosses a cut."""
SLOWDOWN: Final = 20.0
SHAPE: Final = (1, 1, 160_000)
BAR: Final = 1.1
_KERNELS: Final = (2, 4, 4, 10)
_TURNS: Final = (350, 1_750, 1_900)
"""How often each loop computes: about 15, 45 and 40 % of the time."""

Stages = tuple[tuple[int, int, str], ...]


def model_text() -> str:
    """The model in ONNX's text form."""
    sizes = [SHAPE[-1]]
    for kernel in _KERNELS:
        sizes.append(sizes[-1] // kernel)
    lines = []
    for number, kernel in enumerate(_KERNELS):
        taken = f"l{number - 1}" if number else "x"
        given = f"p{number}" if number < len(_TURNS) else "y"
        lines.append(f"{given} = AveragePool <kernel_shape = [{kernel}], strides = [{kernel}]> ({taken})")
        if number < len(_TURNS):
            shape = f"float[1, 1, {sizes[number + 1]}]"
            lines.append(
                f"c{number} = Constant <value = int64 {{{_TURNS[number]}}}> ()\n"
                f"g{number} = Constant <value = bool {{1}}> ()\n"
                f"l{number} = Loop (c{number}, g{number}, p{number}) <body = b{number} "
                f"(int64 i{number}, bool on{number}, {shape} z{number}) => (bool t{number}, {shape} w{number}) {{\n"
                f"t{number} = Identity(on{number})\nw{number} = Tanh(z{number})\n}}>"
            )
    body = "\n".join(lines)
    shape = ", ".join(map(str, SHAPE))
    return (
        '<ir_version: 8, opset_import: ["" : 17]>\n'
        f"shrinking (float[{shape}] x) => (float[1, 1, {sizes[-1]}] y) {{\n{body}\n}}"
    )


def possible(cuts: int) -> Iterator[Stages]:
    """All plans that divide the model: first home, then the unit, and what is left at home."""
    for leaves in range(cuts):
        for returns in range(leaves + 1, cuts + 1):
            stages = ((-1, leaves, "car"), (leaves, returns, "unit"), (returns, cuts, "car"))
            yield tuple(stage for stage in stages if stage[0] < stage[1])


def described(stages: Stages) -> str:
    """A plan as the table shows it."""
    return ", ".join(f"{node} to {last}" for _, last, node in stages)


def timed(folder: Path, speed_mbps: float, requests: int, learning_s: float) -> dict[str, Any]:
    """The median times at one speed, in milliseconds: as chosen, at home, and by each plan."""
    with Lan() as lan, ExitStack() as stack:
        computers = [_computer(lan, name, host, speed_mbps) for name, host in (("unit", 1), ("car", 2))]
        unit = _start(stack, computers[0], PlanSetting(
            folder=str(folder), name="unit", host="10.61.0.1", slowdown=1.0
        ))  # fmt: skip
        seeds = (("10.61.0.1", unit.answer(Listening).port),)
        car = _start(stack, computers[1], PlanSetting(
            folder=str(folder), name="car", host="10.61.0.2", slowdown=SLOWDOWN, seeds=seeds, shape=SHAPE
        ))  # fmt: skip
        cuts = car.answer(Listening).cuts
        chosen = _asked(car, PlanOrder(requests=requests, learning_s=learning_s))
        others = {"all at home": _asked(car, PlanOrder(requests=requests, whole=True))[0]}
        for stages in possible(cuts):
            others[described(stages)] = _asked(car, PlanOrder(requests=requests, stages=stages))[0]
        return {"chosen_ms": chosen[0], "chosen": chosen[1], "cuts": cuts, "forced_ms": others}


def _computer(lan: Lan, name: str, host: int, speed_mbps: float) -> Computer:
    computer = lan.computer(name)
    computer.plug("eth0", f"10.61.0.{host}/24")
    computer.slow("eth0", speed_mbps, SPEEDS_MBPS.get(speed_mbps, 8))
    return computer


def _start(stack: ExitStack, computer: Computer, setting: PlanSetting) -> LineProcess:
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "cwd": ROOT}
    process = LineProcess(computer.start([sys.executable, "-m", "benchmarks.plan_node"], **pipes), setting)
    stack.callback(process.end)
    return process


def _asked(car: LineProcess, order: PlanOrder) -> tuple[float, tuple[str, ...]]:
    car.tell(order)
    answers = car.answer(Answers)
    if not answers.took_ms:
        raise ChildFailed(answers.why)
    return round(statistics.median(answers.took_ms), 1), answers.nodes


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Returns the exit status, see :mod:`benchmarks.command`."""
    parser = command.parser("wired_plans", __doc__, "a chosen plan is not within a tenth of the best")
    parser.add_argument("--speed", type=between(0.5, 1_000.0), action="append", default=[], help="Mb/s; repeatable")
    parser.add_argument("--requests", type=between(1, 1_000), default=15, help="by each plan (default: %(default)s)")
    parser.add_argument("--learning-s", type=between(1.0, 3_600.0), default=60.0, help="default: %(default)s")
    options = parser.parse_args(arguments)
    if (why := why_not()) is not None or not shutil.which("tc"):
        print(f"it can't be measured: {why or 'slow wires need the program tc'}", file=sys.stderr)
        return 2
    from onnx import parser as text_form

    figures: dict[str, Any] = {}
    missed = []
    print(f"{'Mb/s':>5} {'chosen ms':>10} {'best ms':>9} {'home ms':>9}  chosen | best")
    with measuring("wired_plans") as folder:
        create_mesh(folder / "authority", "bench-plans")
        issue(folder / "authority", "rsu", "unit", folder / "unit")
        issue(folder / "authority", "vehicle", "car", folder / "car")
        (folder / "plate.onnx").write_bytes(text_form.parse_model(model_text()).SerializeToString())
        (folder / "plate.toml").write_text("[split]\nfirst_cut_at_home = true\n")
        for speed in options.speed or SPEEDS_MBPS:
            seen = figures[f"{speed:g}"] = timed(folder, speed, options.requests, options.learning_s)
            others, chosen_ms = seen["forced_ms"], seen["chosen_ms"]
            best = min(others, key=lambda plan: others[plan])
            print(
                f"{speed:5g} {chosen_ms:10.1f} {others[best]:9.1f} {others['all at home']:9.1f}  "
                f"{', '.join(seen['chosen'])} | {best}", flush=True,
            )  # fmt: skip
            if chosen_ms > BAR * others[best]:
                missed.append(f"at {speed:g} Mb/s the chosen plan takes {chosen_ms} ms, and {best!r} {others[best]} ms")
    return finish(options, {"speeds_mbps": figures}, missed)


if __name__ == "__main__":
    sys.exit(main())
