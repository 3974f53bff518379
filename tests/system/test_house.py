"""The rules of the house that no linter knows: sizes, folders, names, docstrings, purity, and what no file may name.

Each rule is a function from one source, or from the paths of a tree, to the faults in it; every rule is first shown a
source or a tree that breaks it.
"""

import ast
import importlib
import re
import shutil
import statistics
import subprocess
import tomllib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path, PurePath
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("protocols", "meshnode", "cloud_relay", "sims")
SOURCES = (*PACKAGES, "benchmarks", "demo", "tests", "docs")

MAX_LINES = 600
"""Of a module that is not part of the product."""
MAX_PRODUCT_LINES = 500
MAX_LINES_OF = {"protocols/engine.py": 350, "meshnode/driver.py": 400, "meshnode/node.py": 400}
"""Modules that compose the others: each new capability would like to add its lines to them."""
MEDIAN_LINES = (100, 200)
MAX_MODULES_IN_FOLDER = 14
VAGUE_NAMES = frozenset({"utils", "util", "helpers", "helper", "manager", "common", "misc"})

PURE_MODULES = frozenset({
    "__future__", "abc", "array", "base64", "binascii", "bisect", "collections", "contextlib", "dataclasses", "enum",
    "fractions", "functools", "graphlib", "heapq", "ipaddress", "itertools", "math", "msgspec", "operator", "protocols",
    "mypy_extensions", "random", "re", "statistics", "string", "struct", "types", "typing", "unicodedata",
})  # fmt: skip
"""All that protocols/ may import. ``random`` is there for the name of a type, see ``impurities``, ``mypy_extensions``
for type checkers only."""
IMPURE_BUILTINS = frozenset({"open", "print", "input", "breakpoint", "exec", "eval", "__import__", "hash"})
"""``hash`` of a text differs from process to process: one seed would no longer give one history."""

Rule = Callable[[str], Iterator[str]]


def parsed_lines(source: str) -> Iterator[tuple[int, ast.AST]]:
    """Every node of the syntax tree that stands on a line, with its line number."""
    for node in ast.walk(ast.parse(source)):
        if hasattr(node, "lineno"):
            yield node.lineno, node


def longer_than(limit: int) -> Rule:
    """Modules are small rooms."""

    def excess_lines(source: str) -> Iterator[str]:
        if (count := len(source.splitlines())) > limit:
            yield f"{count} lines, split by {limit}"

    return excess_lines


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


def odd_median(line_counts: Collection[int]) -> Iterator[str]:
    """Half of all modules are shorter than this: far below, ideas are scattered; far above, several share a module."""
    low, high = MEDIAN_LINES
    if not low <= (median := statistics.median(line_counts)) <= high:
        yield f"half of the modules have fewer than {median:g} lines, which should be {low} to {high}"


# --- rules about a tree: paths are relative to the repository --------------------------------------------------------
TreeRule = Callable[[Collection[str]], Iterator[str]]


def crowded_folders(paths: Collection[str]) -> Iterator[str]:
    """A newcomer reads the names of one folder at a glance."""
    counts = Counter(PurePath(path).parent for path in paths if PurePath(path).name != "__init__.py")
    for folder, count in counts.items():
        if count > MAX_MODULES_IN_FOLDER:
            yield f"{folder} has {count} modules, split it by {MAX_MODULES_IN_FOLDER}"


def prefixes_in_place_of_folders(paths: Collection[str]) -> Iterator[str]:
    """A first word that two modules of a folder share, or that a folder around or beside them has, is a folder."""
    folders = {folder for path in paths for folder in PurePath(path).parents}
    words = Counter((PurePath(path).parent, _first_word(path)) for path in paths)
    for path in paths:
        parent, word = PurePath(path).parent, _first_word(path)
        if word and (words[parent, word] > 1 or word in parent.parts or parent / word in folders):
            yield f"{path}: {word}_ is a prefix that stands for a folder"


def _first_word(path: str) -> str:
    """What stands before the first underscore inside the name of a module; nothing when there is none."""
    first, underscore, _ = PurePath(path).stem.strip("_").partition("_")
    return first if underscore else ""


def unmatched_test_folders(paths: Collection[str]) -> Iterator[str]:
    """Tests of a floor lie in folders of the same names."""
    folders = {str(folder) for path in paths for folder in PurePath(path).parents}
    for folder in sorted(folders):
        floor = folder.removeprefix("tests/")
        if floor != folder and floor.partition("/")[0] in PACKAGES and floor not in folders:
            yield f"{folder}: there is no {floor}"


def classes_of_one_name(sources: Mapping[str, str]) -> Iterator[str]:
    """A public class name means one thing, whichever package it is found in. ``sources``: text by path."""
    places: dict[str, list[str]] = {}
    for path, source in sources.items():
        for node in ast.parse(source).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(path)
    for name, found in places.items():
        if len(found) > 1:
            yield f"{name} is a class in {' and in '.join(found)}"


def names_that_can_not_be_taken(module: ModuleType) -> Iterator[str]:
    """What a module lists in ``__all__`` is there, also when it is loaded only when somebody asks for it."""
    for name in module.__all__:
        try:
            getattr(module, name)
        except (AttributeError, ImportError) as error:
            yield f"{module.__name__}.__all__ has {name!r}: {error}"


def paths_below(*folders: str) -> list[str]:
    """The Python files below the folders, relative to the repository."""
    return [path.relative_to(ROOT).as_posix() for path in modules(*folders)]


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
        (longer_than(MAX_LINES), "pass\n" * (MAX_LINES + 1)),
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
        (longer_than(MAX_LINES), "pass\n" * MAX_LINES),
        (impurities, "from random import Random\ndef f(random: Random) -> float:\n    return random.uniform(0, 1)"),
        (package_definitions, "'''x'''\nfrom a import b\n__all__ = ['b']"),
        (package_definitions, "_LAZY = {}\ndef __getattr__(name): return _LAZY[name]"),
        (foreign_places, "/etc/meshnode/node.toml, net/work/x, https://example.org/work/x"),
    ],
)
def test_rule_shown_good_source_is_silent(rule: Rule, source: str) -> None:
    """A rule that cries wolf gets switched off."""
    assert not list(rule(source))


@pytest.mark.parametrize(
    ("rule", "tree"),
    [
        (crowded_folders, [f"sims/media/m{number}.py" for number in range(MAX_MODULES_IN_FOLDER + 1)]),
        (prefixes_in_place_of_folders, ["meshnode/cli_run.py", "meshnode/cli_show.py"]),
        (prefixes_in_place_of_folders, ["meshnode/cli_run.py", "meshnode/cli/show.py"]),
        (prefixes_in_place_of_folders, ["meshnode/links/_express_lane.py", "meshnode/links/express/engine.py"]),
        (prefixes_in_place_of_folders, ["sims/scenario/scenario_file.py"]),
        (unmatched_test_folders, ["meshnode/links/tls.py", "tests/meshnode/link/test_tls.py"]),
        (unmatched_test_folders, ["protocols/wire/codec.py", "tests/protocols/wire/frames/test_codec.py"]),
    ],
)
def test_rule_shown_a_bad_tree_reports_it(rule: TreeRule, tree: list[str]) -> None:
    """As for sources: a rule that finds nothing would pass for ever."""
    assert list(rule(tree))


@pytest.mark.parametrize(
    ("rule", "tree"),
    [
        (
            crowded_folders,
            [f"a/m{number}.py" for number in range(MAX_MODULES_IN_FOLDER)] + ["a/__init__.py", "a/b/c.py"],
        ),
        (prefixes_in_place_of_folders, ["meshnode/http/inference_wire.py", "meshnode/inference/compute.py"]),
        (prefixes_in_place_of_folders, ["meshnode/sensors/csv_replay.py", "meshnode/sensors/__init__.py"]),
        (
            unmatched_test_folders,
            ["protocols/wire/codec.py", "tests/protocols/wire/test_codec.py", "tests/tools/pki.py"],
        ),
    ],
)
def test_rule_shown_a_good_tree_is_silent(rule: TreeRule, tree: list[str]) -> None:
    """As for sources: a rule that cries wolf gets switched off."""
    assert not list(rule(tree))


def test_rules_about_all_modules_shown_a_breach_report_it() -> None:
    """Those that look at more than one source, or at a module that is loaded."""
    assert list(odd_median([10, 20, 900]))
    assert not list(odd_median([90, 150, 900]))
    assert list(classes_of_one_name({"protocols/a.py": "class Entry: pass", "meshnode/b.py": "class Entry: pass"}))
    assert not list(
        classes_of_one_name({"protocols/a.py": "class _Entry: pass", "meshnode/b.py": "class _Entry: pass"})
    )
    module = ModuleType("made_up")
    module.__all__ = ["Put"]  # type: ignore[attr-defined]
    assert list(names_that_can_not_be_taken(module))
    module.Put = object  # type: ignore[attr-defined]
    assert not list(names_that_can_not_be_taken(module))


def test_modules_of_every_folder_stay_small() -> None:
    """A module above 600 lines hides two ideas."""
    assert faults(longer_than(MAX_LINES), modules(*SOURCES)) == []


def test_modules_of_the_product_stay_smaller() -> None:
    """They are read more often than tests are."""
    assert faults(longer_than(MAX_PRODUCT_LINES), modules(*PACKAGES)) == []


@pytest.mark.parametrize(("module", "limit"), MAX_LINES_OF.items())
def test_module_that_composes_others_is_read_in_one_sitting(module: str, limit: int) -> None:
    """A new capability must not have to be squeezed into it."""
    assert faults(longer_than(limit), [ROOT / module]) == []


def test_half_of_the_modules_are_as_short_as_they_should_be() -> None:
    """The bounds above hold for the longest; this one holds for the usual module."""
    counts = [len(path.read_text("utf-8").splitlines()) for path in modules(*PACKAGES) if path.name != "__init__.py"]
    assert list(odd_median(counts)) == []


def test_folders_of_the_product_are_taken_in_at_a_glance() -> None:
    """A flat folder of sixty files makes everybody read sixty opening lines."""
    assert list(crowded_folders(paths_below(*PACKAGES))) == []


def test_modules_of_the_product_have_no_prefix_that_stands_for_a_folder() -> None:
    """They were folders by name only: ``cli_*``, ``scenario_*``, ``_express_*``."""
    assert list(prefixes_in_place_of_folders(paths_below(*PACKAGES))) == []


def test_folders_of_tests_are_those_of_the_product() -> None:
    """Whoever changes a module knows where its tests are."""
    assert list(unmatched_test_folders(paths_below(*PACKAGES, "tests"))) == []


def test_public_class_names_mean_one_thing() -> None:
    """Two classes of one name are taken for each other in every review."""
    floors = ("protocols", "meshnode", "cloud_relay")
    sources = {path: (ROOT / path).read_text("utf-8") for path in paths_below(*floors)}
    assert list(classes_of_one_name(sources)) == []


def test_names_of_every_all_can_be_taken() -> None:
    """``meshnode.Put`` stood in ``__all__`` and in the reference, and raised AttributeError."""
    listing = [path for path in paths_below(*PACKAGES) if "\n__all__ = " in (ROOT / path).read_text("utf-8")]
    assert "meshnode/__init__.py" in listing
    for path in listing:
        module = importlib.import_module(path.removesuffix(".py").replace("/", ".").removesuffix(".__init__"))
        assert list(names_that_can_not_be_taken(module)) == []


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


@pytest.mark.processes
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
