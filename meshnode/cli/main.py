"""The ``meshnode`` command.

Exit status: 0 done; 1 a check failed, something didn't work, or nothing was found; 2 the command line or a
configuration is wrong, so trying again can't help; 130 interrupted; 141 the reader of the output has gone (the last two
as in a shell). Every error is one line on standard error.

Importing this must stay cheap: commands import what they need when they run.
"""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from meshnode.cli.doctor import doctor
from meshnode.cli.mesh import mesh
from meshnode.cli.neighbours import peers, watch
from meshnode.cli.readings import pub, sub
from meshnode.cli.run import run
from meshnode.console.printing import PIPE_CLOSED
from meshnode.part import Part
from meshnode.parts import CAPABILITIES, DOORS, installed_part
from meshnode.trial.commands import trial
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


class PartGroup(click.Group):
    """Commands of the node itself and of its parts. An unknown command may belong to an installed part."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """See :class:`click.Group`. :raises ConfigError: when an installed part of that name is broken."""
        command = super().get_command(ctx, cmd_name)
        if command is None:
            for command in _commands_of(ctx.obj or ()):
                if command.name == cmd_name:
                    return command
            part = installed_part(cmd_name)
            commands = part.commands() if part is not None else ()
            command = next((command for command in commands if command.name == cmd_name), None)
        return command

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The node's commands and those of parts handed over; an installed part is loaded only when it is named."""
        handed = [command.name for command in _commands_of(ctx.obj or ()) if command.name is not None]
        return sorted({*super().list_commands(ctx), *handed})


def _commands_of(parts: Sequence[Part]) -> list[click.Command]:
    return [command for part in parts for command in part.commands()]


@click.group(cls=PartGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version,
              help="Show the version and exit.")  # fmt: skip
def commands() -> None:
    """Run a node of a mesh, look at it, and work with it.

    A node is started with 'meshnode run'; the other commands talk to a running one over HTTP on this host.
    """


for _command in (run, peers, watch, pub, sub, doctor, mesh, trial, *_commands_of((*CAPABILITIES, *DOORS))):
    commands.add_command(_command)


def main(parts: Sequence[Part] = ()) -> NoReturn:
    """Entry point of the console script. ``parts``: capabilities on top of those that every node has; a program that
    has such parts calls this from an entry point of its own."""
    sys.exit(_status(parts))


def _status(parts: Sequence[Part]) -> int:
    try:
        status = commands(prog_name="meshnode", standalone_mode=False, obj=tuple(parts))
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
