"""What is checked of a file of rules before it is signed: it compiles as on a node, and does what its cases say.

The compiler is the node's own, so what passes here is refused by a node only for what is its own: less memory for
rules, or a rule of its configuration with the same name.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from meshnode.records.rules.compiling import rules_of_file
from meshnode.records.rules.trying import cases_of_file, tried
from protocols.base.errors import ConfigError, ReleaseInvalid
from protocols.base.ids import NodeId

_NODE: Final = NodeId("node")
_DIFFERENCES_SHOWN: Final = 3


def cases_beside(rules: Path) -> tuple[Path, ...]:
    """The file of cases that goes with a file of rules by its name, if there is one: ``traffic-cases.toml``."""
    cases = rules.with_name(f"{rules.stem}-cases.toml")
    return (cases,) if cases.is_file() else ()


def lint_rules(rules: Path, cases: Sequence[Path]) -> None:
    """Compile a file of rules, and carry out the cases of some files.

    :raises ReleaseInvalid: it does not compile, a case is not as expected, or a file of cases is about other rules.
    """
    try:
        rules_of_file(rules, _NODE)
        for path in cases:
            _try(rules, path)
    except ConfigError as error:
        raise ReleaseInvalid(f"{rules} is not published: {error}") from error


def _try(rules: Path, path: Path) -> None:
    about, cases = cases_of_file(path)
    if about.resolve() != rules.resolve():
        raise ReleaseInvalid(f"the cases in {path} are about {about}, and {rules} is published: name another file")
    for case in cases:
        if differences := tried(rules, case).differences:
            more = f" (and {len(differences) - _DIFFERENCES_SHOWN} more)" * (len(differences) > _DIFFERENCES_SHOWN)
            raise ReleaseInvalid(
                f"{rules} is not published: the case {case.name!r} in {path} is not as expected: "
                f"{'; '.join(differences[:_DIFFERENCES_SHOWN])}{more}"
            )
