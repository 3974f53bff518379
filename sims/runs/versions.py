"""The versions that a run was made with: what a digest depends on besides the run itself."""

import hashlib
import platform
from functools import cache
from pathlib import Path

import msgspec

import protocols.engine

_SOURCES = (Path(protocols.__file__).parent, Path(__file__).parents[1])


@cache
def versions() -> dict[str, str]:
    """Versions by name. ``code`` is a hash of the sources of engine and harness. ``build`` says whether these are
    compiled; no digest depends on that."""
    code = hashlib.sha256()
    for folder in _SOURCES:
        for path in sorted(folder.rglob("*.py")):
            code.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return {
        "python": platform.python_version(), "msgspec": msgspec.__version__, "code": code.hexdigest()[:12],
        "build": "interpreted" if (protocols.engine.__file__ or "").endswith(".py") else "compiled",
    }  # fmt: skip
