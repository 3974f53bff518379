"""The documentation does what it says: links lead somewhere, files load, commands exist, examples run.

Code blocks are found by their language. A TOML or Python block whose first line is a comment with a file name is that
file, and later blocks that are "appended to" it belong to it.
"""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from cloud_relay.cli import main as cloud_relay
from cloud_relay.config import load_config
from cloud_relay.learning.recipe import read_recipe
from demo.processes import free_port
from meshnode.applications.manifest import read_application
from meshnode.cli.main import commands as meshnode_commands
from meshnode.identity import create_mesh, issue
from meshnode.loading import load
from meshnode.models import read_manifest
from meshnode.models.manifest import SplitRules
from meshnode.trial.trial import load_plan
from protocols.base.errors import ConfigError
from sims.cli.main import main as meshsim
from sims.scenario.file import loads
from tests.tools.eventually import eventually
from tests.tools.node_fixture import RunningNode, environment, meshnode

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md")))
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NAMED = re.compile(r"# (appended to )?(\S+\.(?:toml|py))\n")
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_IN_TEXT = re.compile(r"`(make [a-z-]+)|`((?:meshnode|cloud-relay|meshsim) [a-z]+(?: (?:init|issue|show))?)")


@dataclass(frozen=True)
class Block:
    """One block of code of one page."""

    page: Path
    language: str
    text: str

    @property
    def place(self) -> str:
        """For messages."""
        return f"{self.page.relative_to(ROOT)}: {self.text.splitlines()[0][:60]!r}"


def blocks(*languages: str, pages: tuple[Path, ...] = PAGES) -> list[Block]:
    """All blocks in one of ``languages``, in order."""
    found = [(page, match) for page in pages for match in _FENCE.finditer(page.read_text("utf-8"))]
    return [Block(page, match[1], match[2]) for page, match in found if match[1] in languages]


def shell_lines(block: Block) -> Iterator[str]:
    """The commands of a console block, continuation lines joined."""
    for line in block.text.replace("\\\n", " ").splitlines():
        if line.startswith("$ "):
            yield line.removeprefix("$ ")


# --- links -----------------------------------------------------------------------------------------------------------
def test_links_of_every_page_lead_to_a_file() -> None:
    """A reader who follows a link must not stand before nothing; on a code host no builder checks it."""
    dead = []
    for page in PAGES:
        for target in _LINK.findall(_FENCE.sub("", page.read_text("utf-8"))):
            path = target.partition("#")[0]
            if not path or re.match(r"[a-z]+:", path):
                continue
            if not (page.parent / path).exists():
                dead.append(f"{page.relative_to(ROOT)}: {target}")
    assert not dead


def test_tables_of_every_page_have_a_head_and_rows_of_one_width() -> None:
    """An empty line inside a table makes plain text of the rows below it."""
    broken = []
    for page in PAGES:
        for paragraph in re.split(r"\n\s*\n", _FENCE.sub("", page.read_text("utf-8"))):
            rows = [re.sub(r"\\\||`[^`]*`", "", line) for line in paragraph.splitlines() if line.startswith("|")]
            headed = len(rows) > 1 and re.fullmatch(r"[|:\s-]+", rows[1])
            if rows and (not headed or len({row.count("|") for row in rows}) > 1):
                broken.append(f"{page.relative_to(ROOT)}: {rows[0][:60]!r}")
    assert not broken


def test_pages_of_the_tree_are_all_found() -> None:
    """A rule that looks at no page would pass for ever."""
    folders = {page.parent.name for page in PAGES}
    assert {"tutorial", "howto", "reference", "explanation", "adr"} <= folders
    assert len(blocks("python")) >= 6
    assert len(blocks("toml")) >= 8


# --- commands --------------------------------------------------------------------------------------------------------
def _parse(program: click.Command, words: list[str]) -> None:
    """Parse a command line as the program would, without running it. :raises click.UsageError: it is not one."""
    name, command = words[0], program
    with ExitStack() as stack:
        context = stack.enter_context(click.Context(command, info_name=name))
        rest = words[1:]
        while isinstance(command, click.Group) and rest[:1] != ["--help"]:
            if command.invoke_without_command and (not rest or rest[0].startswith("-")):
                break
            _, found, rest = command.resolve_command(context, rest)
            assert found is not None
            command = found
            context = stack.enter_context(click.Context(command, parent=context))
        if "--help" not in rest:
            command.make_context(name, rest)


def _check_line(line: str, targets: frozenset[str]) -> str | None:
    """What is wrong with a command line of ours; None for those of others."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in lexer:
        if set(word) <= set("|&;<>"):
            break
        words.append(word)
    if words[:1] == ["sudo"]:
        words = words[3:] if words[1] == "-u" else words[1:]
    words = words or [""]
    program = words[0].rpartition("/")[2]
    if program == "make":
        unknown = [word for word in words[1:] if "=" not in word and word not in targets]
        return f"no target {unknown}" if unknown else None
    programs: dict[str, click.Command] = {"meshnode": meshnode_commands, "cloud-relay": cloud_relay, "meshsim": meshsim}
    if program not in programs or len(words) < 2:
        return None
    try:
        _parse(programs[program], words)
    except click.ClickException as error:
        return error.format_message()
    return None


def _targets() -> frozenset[str]:
    text = (ROOT / "Makefile").read_text("utf-8")
    declared = re.search(r"^\.PHONY:(.*)$", text, re.MULTILINE)
    assert declared is not None
    return frozenset(declared[1].split())


def test_commands_of_every_page_are_understood() -> None:
    """Commands are copied word by word; one that was renamed fails a newcomer at the first step."""
    targets, faults, checked = _targets(), [], 0
    for block in blocks("console"):
        for line in shell_lines(block):
            fault = _check_line(line, targets)
            checked += 1
            if fault is not None:
                faults.append(f"{block.page.relative_to(ROOT)}: $ {line}: {fault}")
    assert checked > 40
    assert not faults


def test_commands_named_in_the_readme_text_exist() -> None:
    """What stands in prose is typed as well."""
    targets = _targets()
    for page in (ROOT / "README.md", ROOT / "CHANGELOG.md"):
        for make, ours in _IN_TEXT.findall(page.read_text("utf-8")):
            line = make or f"{ours} --help"
            assert _check_line(line, targets) is None, f"{page.name}: {line}"


@pytest.mark.parametrize(
    "line",
    [
        "make demmo",
        "meshnode pears",
        "meshnode peers --nod x.toml",
        "cloud-relay query --box",
        "meshsim walk",
        "meshnode run",
    ],
)
def test_commands_that_do_not_exist_are_found_out(line: str) -> None:
    """The checker itself can fail."""
    assert _check_line(line, _targets()) is not None


# --- configuration ---------------------------------------------------------------------------------------------------
def _configurations() -> list[tuple[str, str]]:
    """(place, TOML) of every configuration in the documentation, appended parts joined."""
    whole: dict[tuple[Path, str], list[str]] = {}
    for number, block in enumerate(blocks("toml")):
        named = _NAMED.match(block.text)
        name = named[2] if named is not None else f"block {number}"
        if named is not None and named[1]:
            assert (block.page, name) in whole, f"{block.place} is appended to nothing"
        whole.setdefault((block.page, name), []).append(block.text)
    return [(f"{page.relative_to(ROOT)}, {name}", "\n".join(parts)) for (page, name), parts in whole.items()]


@pytest.mark.parametrize(("place", "text"), _configurations(), ids=[place for place, _ in _configurations()])
def test_configuration_of_the_documentation_loads(place: str, text: str, tmp_path: Path) -> None:
    """An example with an unknown key is worse than none."""
    table = tomllib.loads(text)
    if "build-system" in table:
        assert table["project"]["entry-points"].keys() & {"meshnode.sensors", "meshnode.parts"}
        return
    if "groups" in table:
        for name in (
            *table.get("curation", {}).get("rules", ()),
            *(n for g in table["groups"] for n in g.get("rules", ())),
        ):
            (tmp_path / name).touch()
        assert loads(text, str(tmp_path)).duration_s == table["duration_s"]
        return
    config = tmp_path / "example.toml"
    if "target" in table:
        config.write_text(text, "utf-8")
        assert read_recipe(config).name == table["name"]
        return
    if table.keys() & {"preprocessing", "split"}:
        config.write_text(text, "utf-8")
        manifest = read_manifest(config.with_suffix(".onnx"))
        assert manifest.preprocessing or manifest.split != SplitRules()
        return
    if "publish" in table:
        config.write_text(text, "utf-8")
        assert load_plan(config).publish
        return
    if "publisher" in table:
        config.write_text(text, "utf-8")
        assert read_application(config).name == table["name"]
        return
    if "id" in table.get("relay", {}) and "address" not in table["relay"]:
        config.write_text(text, "utf-8")
        assert load_config(config).node == table["relay"]["id"]
        return
    if "node" not in table:
        text = f'[node]\nid = "veh-1"\n\n{text}'
    config.write_text(text, "utf-8")
    node = tomllib.loads(text)["node"]["id"]
    create_mesh(tmp_path / "authority", "docs")
    issue(tmp_path / "authority", "vehicle", node, tmp_path)
    for model in table.get("models", {}).values():
        (tmp_path / model["path"]).touch()
    for name in table.get("rules", {}).get("files", ()):
        (tmp_path / name).touch()
    for application in table.get("application", ()):
        (tmp_path / application["manifest"]).parent.mkdir(parents=True)
        (tmp_path / application["manifest"]).touch()
    if "releases" in table:
        (tmp_path / table["releases"]["root"]).touch()
    assert load(config).node.id == node


def test_configuration_with_an_unknown_key_is_refused(tmp_path: Path) -> None:
    """The check above would notice."""
    create_mesh(tmp_path / "authority", "docs")
    issue(tmp_path / "authority", "vehicle", "veh-1", tmp_path)
    config = tmp_path / "example.toml"
    config.write_text('[node]\nid = "veh-1"\nspeed = 3\n', "utf-8")
    with pytest.raises(ConfigError, match="speed"):
        load(config)


# --- examples --------------------------------------------------------------------------------------------------------
def test_python_examples_compile() -> None:
    """The least that can be asked of an example that is not run here."""
    for block in blocks("python"):
        compile(block.text, block.place, "exec")


@pytest.mark.processes
def test_api_example_runs_on_a_real_node(tmp_path: Path) -> None:
    """The first program that an application developer copies: two nodes, seen from the API reference's own words."""
    (example,) = [
        b for b in blocks("python", pages=(ROOT / "docs/reference/api.md",)) if 'open("vehicle.toml")' in b.text
    ]
    create_mesh(tmp_path / "authority", "docs")
    for role, node in (("rsu", "rsu-1"), ("vehicle", "veh-1")):
        issue(tmp_path / "authority", role, node, tmp_path)
    common = '[listen]\nhost = "127.0.0.1"\n[http]\nport = 0\n[discovery]\nmdns = false\n'
    rsu = tmp_path / "rsu.toml"
    rsu.write_text(
        '[node]\nid = "rsu-1"\nstate_dir = "state-rsu"\n'
        "position = { latitude_deg = 48.7655, longitude_deg = 11.4237, accuracy_m = 0.1 }\n"
        f'{common}[sensors.host]\ndriver = "host"\ninterval_s = 0.2\n'
    )
    with RunningNode(rsu) as neighbour:
        seeds = f'seeds = ["127.0.0.1:{neighbour.port}"]\n'
        (tmp_path / "vehicle.toml").write_text(f'[node]\nid = "veh-1"\n{common}{seeds}')
        program = tmp_path / "example.py"
        program.write_text(example.text.replace("print(reading.key, reading.value)", "print(reading.key); return"))
        ended = _python(program, tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("rsu/rsu-1/host/")


@pytest.mark.processes
def test_virtual_time_example_prints_what_its_page_says(tmp_path: Path) -> None:
    """Its numbers are quoted in two pages: who is dead, and that nobody else is."""
    page = (ROOT / "docs/howto/test-a-topology.md",)
    (example,) = blocks("python", pages=page)
    (output,) = blocks("text", pages=page)
    program = tmp_path / "topology.py"
    program.write_text(example.text)
    ended = _python(program, tmp_path)
    assert ended.returncode == 0, ended.stderr
    deaths = re.compile(r"^[\d.]+ s: (.* is dead)$", re.MULTILINE)
    assert sorted(deaths.findall(ended.stdout)) == sorted(deaths.findall(output.text))
    assert len(deaths.findall(output.text)) == 7


def _python(program: Path, folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, str(program)], cwd=folder, env=environment(), capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip


# --- the README, word by word ---------------------------------------------------------------------------------------
class Walk:
    """Does what the README says, in its order, in a fresh folder."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self._stack = folder, stack
        self.nodes: dict[str, RunningNode] = {}
        self.outputs: dict[str, str] = {}
        # Two walks on one host must not meet: another name of the mesh, and other ports.
        self._replaced = {
            "demo-road": f"readme-{os.getpid()}",
            "8470": str(free_port()),
            "8471": str(free_port()),
        }

    def _own(self, text: str) -> str:
        for old, new in self._replaced.items():
            text = text.replace(old, new)
        return text

    def take(self, block: Block) -> None:
        """Write a file, or run commands."""
        named = _NAMED.match(block.text)
        if named is not None:
            (self.folder / named[2]).write_text(self._own(block.text), "utf-8")
        elif block.language == "console":
            for line in shell_lines(block):
                self._run(line)

    def _run(self, line: str) -> None:
        words = shlex.split(self._own(line))
        match words:
            case ["meshnode", "run", config]:
                self.nodes[config] = self._stack.enter_context(RunningNode(self.folder / config))
            case ["meshnode", "watch", *rest]:
                self._finish(line, ["watch", *rest, "--once"])
            case ["meshnode", "peers", *rest]:
                eventually(lambda: meshnode("peers", *rest, cwd=self.folder).returncode == 0, "they meet", 60.0)
                self._finish(line, words[1:])
            case ["meshnode", *rest]:
                self._finish(line, rest)
            case ["python", program]:
                assert self.nodes["vehicle.toml"].stop() == 0  # as the text says
                ended = _python(self.folder / program, self.folder)
                assert ended.returncode == 0, ended.stderr
                self.outputs[line] = ended.stdout
            case _:
                raise AssertionError(f"{line}: this test does not know how to run it")

    def _finish(self, line: str, words: list[str]) -> None:
        ended = meshnode(*words, cwd=self.folder)
        assert ended.returncode == 0, f"{line}: {ended.stderr}"
        self.outputs[line] = ended.stdout


@pytest.mark.processes
def test_readme_followed_word_by_word_gives_a_mesh(tmp_path: Path) -> None:
    """Whoever has five minutes does exactly this, and judges the rest by it."""
    text = (ROOT / "README.md").read_text("utf-8")
    begin, end = text.index("## Five minutes by hand"), text.index("## How fast")
    with ExitStack() as stack:
        walk = Walk(tmp_path, stack)
        for match in _FENCE.finditer(text, begin, end):
            walk.take(Block(ROOT / "README.md", match[1], match[2]))
        outputs = {" ".join(line.split()[:2]): output for line, output in walk.outputs.items()}
        assert "rsu-1" in outputs["meshnode peers"]
        assert '"veh-1"' in outputs["meshnode sub"]
        assert "published veh/veh-1/note" in outputs["meshnode pub"]
        assert "0 failures" in outputs["meshnode doctor"]
        assert outputs["python brake.py"].startswith("met ['rsu-1']")
        assert walk.nodes["rsu.toml"].stop() == 0
