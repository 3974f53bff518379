"""The rules of the house that no linter knows: sizes, opening docstrings, purity, and what no file may name.

Each rule is a function from one source to the faults in it; every rule is first shown a source that breaks it.
"""

import ast
import importlib
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("protocols", "meshnode", "cloud_relay", "sims")
SOURCES = (*PACKAGES, "benchmarks", "demo", "tests", "docs")

MAX_MODULE_LINES = 600
VAGUE_NAMES = frozenset({"utils", "util", "helpers", "helper", "manager", "common", "misc"})

PURE_MODULES = frozenset({
    "__future__", "abc", "array", "base64", "binascii", "bisect", "collections", "contextlib", "dataclasses", "enum",
    "fractions", "functools", "graphlib", "heapq", "ipaddress", "itertools", "math", "msgspec", "operator", "protocols",
    "random", "re", "statistics", "string", "struct", "types", "typing", "unicodedata",
})  # fmt: skip
"""All that protocols/ may import. ``random`` is there for the name of a type, see ``impurities``."""
IMPURE_BUILTINS = frozenset({"open", "print", "input", "breakpoint", "exec", "eval", "__import__", "hash"})
"""``hash`` of a text differs from process to process: one seed would no longer give one history."""

Rule = Callable[[str], Iterator[str]]


def parsed_lines(source: str) -> Iterator[tuple[int, ast.AST]]:
    """Every node of the syntax tree that stands on a line, with its line number."""
    for node in ast.walk(ast.parse(source)):
        if hasattr(node, "lineno"):
            yield node.lineno, node


def excess_lines(source: str) -> Iterator[str]:
    """Modules are small rooms."""
    if (count := len(source.splitlines())) > MAX_MODULE_LINES:
        yield f"{count} lines, split by {MAX_MODULE_LINES}"


def missing_opening(source: str) -> Iterator[str]:
    """A module opens by saying what it is."""
    if not ast.get_docstring(ast.parse(source)):
        yield "no opening docstring"


def impurities(source: str) -> Iterator[str]:
    """A module of protocols/ touches nothing of the world and takes its randomness as an argument."""
    for line, node in parsed_lines(source):
        match node:
            case ast.Import(names=names):
                modules = [alias.name for alias in names]
            case ast.ImportFrom(module=module, level=level):
                modules = ["protocols" if level else str(module)]
            case ast.Call(func=ast.Name(id="Random")):
                yield f"{line}: makes its own randomness"
                continue
            case ast.Call(func=ast.Name(id=name)) if name in IMPURE_BUILTINS:
                yield f"{line}: calls {name}()"
                continue
            case _:
                continue
        for module in modules:
            if module.partition(".")[0] not in PURE_MODULES:
                yield f"{line}: imports {module}"
        if "random" in modules and [alias.name for alias in node.names] != ["Random"]:
            yield f"{line}: imports more of random than the type Random"


def package_definitions(source: str) -> Iterator[str]:
    """An ``__init__`` hands names on and defines nothing; the lazy ``__getattr__`` of PEP 562 is handing on."""
    tree = ast.parse(source)
    lazy = any(isinstance(node, ast.FunctionDef) and node.name == "__getattr__" for node in tree.body)
    for node in tree.body:
        match node:
            case ast.Import() | ast.ImportFrom() | ast.Expr(value=ast.Constant()):
                continue
            case ast.If(test=ast.Name(id="TYPE_CHECKING"), body=body) if all(
                isinstance(inner, ast.Import | ast.ImportFrom) for inner in body
            ):
                continue
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)) if name in (
                "__all__",
                "__version__",
            ) or (lazy and name.startswith("_")):
                continue
            case ast.FunctionDef(name="__getattr__" | "__dir__"):
                continue
            case _:
                yield f"{node.lineno}: defines something"


def foreign_places(text: str) -> Iterator[str]:
    """Nothing names a home directory, a place beside the repository, or an address of a package index."""
    patterns = (
        r"(?<![\w.~-])/(?:home|root|Users|work)/[\w.-]+",
        re.escape(str(ROOT)) + r"\b",
        r"\.\./" + "shared",
        r"(?:files\.python" + r"hosted|(?:test\.)?py" + r"pi)\.org",
        r"--(?:extra-)?index-" + r"url|--find-" + r"links|--trusted-" + r"host",
        r"https?://[^\s/]+/(?:[\w-]+/)*simple/",
    )
    for number, line in enumerate(text.splitlines(), 1):
        for pattern in patterns:
            if found := re.search(pattern, line):
                yield f"{number}: names {found.group()}"


def modules(*folders: str, name: str = "*.py") -> list[Path]:
    """The Python files below the folders, in a fixed order."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob(name))


def faults(rule: Rule, paths: list[Path]) -> list[str]:
    """What ``rule`` finds in the files, each with its place."""
    assert paths, "the rule has nothing to judge: were folders renamed?"
    return [f"{path.relative_to(ROOT)}: {fault}" for path in paths for fault in rule(path.read_text("utf-8"))]


@pytest.mark.parametrize(
    ("rule", "source"),
    [
        (excess_lines, "pass\n" * (MAX_MODULE_LINES + 1)),
        (missing_opening, "import re\n"),
        (impurities, "import time"),
        (impurities, "from os.path import join"),
        (impurities, "def f():\n    import socket"),
        (impurities, "from random import Random\nr = Random(1)"),
        (impurities, "from random import random"),
        (impurities, "import random\nx = random.random()"),
        (impurities, "open('x')"),
        (package_definitions, "def f(): pass"),
        (package_definitions, "X = 1"),
        (package_definitions, "if TYPE_CHECKING:\n    X = 1"),
        (foreign_places, f"cd {ROOT}"),
        (foreign_places, "path = '/home" + "/ada/mesh'"),
        (foreign_places, "open('.." + "/shared/data')"),
        (foreign_places, "pip install --index-" + "url x"),
    ],
)
def test_rule_shown_a_breach_reports_it(rule: Rule, source: str) -> None:
    """A rule that finds nothing in a bad source would pass for ever."""
    assert list(rule(source))


@pytest.mark.parametrize(
    ("rule", "source"),
    [
        (impurities, "from random import Random\ndef f(random: Random) -> float:\n    return random.uniform(0, 1)"),
        (package_definitions, "'''x'''\nfrom a import b\n__all__ = ['b']"),
        (package_definitions, "_LAZY = {}\ndef __getattr__(name): return _LAZY[name]"),
        (foreign_places, "/etc/meshnode/node.toml, net/work/x, https://example.org/work/x"),
    ],
)
def test_rule_shown_good_source_is_silent(rule: Rule, source: str) -> None:
    """A rule that cries wolf gets switched off."""
    assert not list(rule(source))


def test_modules_of_every_folder_stay_small() -> None:
    """A module above 600 lines hides two ideas."""
    assert faults(excess_lines, modules(*SOURCES)) == []


def test_modules_of_every_folder_open_with_a_docstring() -> None:
    """The first line tells a reader whether this is the right room."""
    assert faults(missing_opening, modules(*SOURCES)) == []


def test_module_names_say_what_is_inside() -> None:
    """A drawer called ``utils`` fills itself."""
    assert [str(path.relative_to(ROOT)) for path in modules(*SOURCES) if path.stem.strip("_") in VAGUE_NAMES] == []


def test_protocols_import_only_what_is_pure() -> None:
    """A clock or a socket in here would make a simulation differ from the road."""
    assert faults(impurities, modules("protocols")) == []


def test_packages_define_nothing_in_their_init() -> None:
    """What stands in an ``__init__`` is loaded by everybody and found by nobody."""
    assert faults(package_definitions, modules(*PACKAGES, name="__init__.py")) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_package_is_marked_as_typed(package: str) -> None:
    """Without the marker a user's type checker ignores all our annotations."""
    assert (ROOT / package / "py.typed").is_file()


def test_entry_points_of_the_distribution_lead_to_something() -> None:
    """An installed command that can't be imported is the first thing a user would see."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    targets = [*project["scripts"].values(), *project["entry-points"]["meshnode.sensors"].values()]
    for target in targets:
        module, _, name = target.partition(":")
        assert callable(getattr(importlib.import_module(module), name)), target


def test_constraints_hold_names_and_versions_only() -> None:
    """A path or an address would tie every installation to the machine that made the file."""
    lines = [line for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line)] == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = [
        *project["dependencies"],
        *(line for lines in project["optional-dependencies"].values() for line in lines),
    ]
    pinned = {_normalised(line.partition("==")[0]) for line in lines}
    assert {_normalised(re.split(r"[^\w.-]", line, maxsplit=1)[0]) for line in wanted} - pinned == set()


def test_files_of_the_repository_name_no_place_outside_it() -> None:
    """A clone works at any path, on any machine, with any package index."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git clone: there is no list of the files that belong to the repository")
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    paths = [ROOT / name for name in names if name and (ROOT / name).is_file()]
    assert (
        faults(foreign_places, [path for path in paths if b"\0" not in path.read_bytes()[:8192] and _utf8(path)]) == []
    )


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _utf8(path: Path) -> bool:
    try:
        path.read_text("utf-8")
    except UnicodeDecodeError:
        return False
    return True
