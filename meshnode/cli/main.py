"""The ``meshnode`` command.

Exit status: 0 done; 1 a check failed, something didn't work, or nothing was there; 2 wrong use, of the command line or
in a configuration, where trying again can't help; 130 interrupted; 141 whoever read the output has gone (the last two
as a shell has it). Whatever goes wrong is one line on standard error.

Importing this must stay cheap: commands import what they need when they run.
"""

import os
import sys
from typing import NoReturn

import click

from meshnode.cli.doctor import doctor
from meshnode.cli.gossip import gossip
from meshnode.cli.inference import infer
from meshnode.cli.mesh import mesh
from meshnode.cli.neighbours import peers, watch
from meshnode.cli.printing import PIPE_CLOSED
from meshnode.cli.readings import pub, sub
from meshnode.cli.run import run
from meshnode.cli.trial import trial
from protocols.base.errors import ConfigError, InputInvalid, LocalProtocolError, MeshError

INTERRUPTED = 130


def _print_version(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    if not asked or ctx.resilient_parsing:
        return
    from importlib.metadata import PackageNotFoundError, version

    try:
        click.echo(f"meshnode {version('meshnode')}")
    except PackageNotFoundError:
        click.echo("meshnode, from a source tree that is not installed")
    ctx.exit()


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version,
              help="Show the version and exit.")  # fmt: skip
def commands() -> None:
    """Run a node of a mesh, look at it, and work with it.

    A node is started with 'meshnode run'; the other commands talk to a running one over HTTP on this host.
    """


for _command in (run, peers, watch, gossip, pub, sub, infer, doctor, mesh, trial):
    commands.add_command(_command)


def main() -> NoReturn:
    """Entry point of the console script."""
    sys.exit(_status())


def _status() -> int:
    try:
        status = commands(prog_name="meshnode", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except BrokenPipeError:
        # Python flushes once more at exit, and would complain there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except MeshError as error:
        _say(str(error))
        return 2 if isinstance(error, ConfigError | LocalProtocolError | InputInvalid) else 1
    except Exception as error:
        if os.environ.get("MESHNODE_TRACEBACK"):
            raise
        _say(
            f"internal error, {type(error).__name__}: {error}. This is a bug: please report it with the output of the "
            "same command under MESHNODE_TRACEBACK=1"
        )
        return 1
    return status if isinstance(status, int) else 0


def _say(message: str) -> None:
    click.echo(f"meshnode: {message}", err=True)
