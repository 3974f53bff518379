"""Reads a TOML file that somebody wrote by hand, up to a size, with messages for its author."""

import tomllib
from pathlib import Path
from typing import Any, Final

from protocols.base.errors import ConfigError

MAX_CONFIG_BYTES: Final = 1024 * 1024
"""The largest file, because a wrong path could name a disk image."""


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a file as they stand in it. :raises ConfigError: when it can't be read, or is not TOML."""
    try:
        if path.exists() and not path.is_file():
            raise ConfigError(f"{path} is not a file: name the TOML file itself")
        with path.open("rb") as file:
            content = file.read(MAX_CONFIG_BYTES + 1)
    except FileNotFoundError as error:
        raise ConfigError(
            f'{path} does not exist: correct the path, or write it (two lines are enough: [node] and id = "…")'
        ) from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(f"{path} can't be read ({reason}): check its path, owner and mode") from error
    if len(content) > MAX_CONFIG_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_CONFIG_BYTES:,} bytes: name the TOML file itself")
    try:
        return tomllib.loads(content.decode())
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}, line {line} is not UTF-8 text: save the file as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}; correct that line") from error
    except (RecursionError, ValueError) as error:
        raise ConfigError(f"{path} is not valid TOML: a value is nested too deep or too long; simplify it") from error
