"""One word, one meaning: names of public classes, and the glossary."""

import ast
import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GLOSSARY = ROOT / "docs/reference/glossary.md"


def public_classes(*packages: str) -> dict[str, list[str]]:
    """Where each public class at the top of a module stands, by name."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted(path for package in packages for path in (ROOT / package).rglob("*.py")):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].append(str(path.relative_to(ROOT)))
    assert found, "there is nothing to judge: were packages renamed?"
    return found


def glossary_rows() -> list[tuple[list[str], str]]:
    """The words of each row with their meaning."""
    lines = [line for line in GLOSSARY.read_text("utf-8").splitlines() if line.startswith("| ")]
    rows = [line.strip("| ").split(" | ", 1) for line in lines if line != "| word | meaning |"]
    return [(words.split(", "), meaning) for words, meaning in rows]


def test_public_classes_of_nodes_and_relay_have_names_of_their_own() -> None:
    """Whoever reads ``Entry`` in a message or an import must not have to ask which one."""
    found = public_classes("protocols", "meshnode", "cloud_relay")
    assert {name: places for name, places in found.items() if len(places) > 1} == {}


def test_glossary_gives_each_word_one_row_and_refers_to_rows_that_exist() -> None:
    """A word with two rows has two meanings."""
    rows = glossary_rows()
    words = [word for row, _ in rows for word in row]
    assert sorted({word for word in words if words.count(word) > 1}) == []
    known = {*words, *(f"{word}s" for word in words), *(", ".join(row) for row, _ in rows)}
    referred = {name for _, meaning in rows for name in re.findall(r"(?<!\*)\*([\w ()]+)\*(?!\*)", meaning)}
    assert sorted(referred - known) == ["Swarm Testing"]  # the title of a paper


def test_glossary_names_classes_that_exist() -> None:
    """A row about a class that is gone misleads."""
    classes = public_classes("protocols", "meshnode", "cloud_relay", "sims")
    assert sorted(set(re.findall(r"`([A-Z]\w+)`", GLOSSARY.read_text("utf-8"))) - set(classes)) == []
