"""``python -m tests.system.echo run node.toml``: the ``meshnode`` command with one more capability."""

from meshnode.cli.main import main
from tests.system.echo.part import ECHO

main(parts=(ECHO,))
