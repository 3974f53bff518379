"""``meshnode run``: one node as a process, until it is told to leave."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from meshnode.part import Part


@click.command()
@click.argument("config_path", metavar="CONFIG", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Write the log as one JSON object a line.")
@click.pass_obj
def run(parts: "Sequence[Part]", config_path: Path, as_json: bool) -> None:
    """Run the node of a configuration file until SIGTERM or Ctrl-C.

    The log goes to standard error. While the clock shows a time at which the certificate can't be used, the node waits.
    Once the node listens, one line on standard output says so:
    'ready rsu-1 rsu port 41234 http 8470'. On the first signal the node says goodbye and exits with 0; on a second one
    it ends at once.
    """
    import asyncio

    from meshnode.console.process import log_to_stderr, serve
    from meshnode.opening import open as open_node

    configured = open_node(config_path, parts, wait_for_clock=True)
    log_to_stderr(configured.config.log.level, as_json)
    asyncio.run(serve(configured))
