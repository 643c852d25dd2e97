"""The commands for people. The only user of click."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict

import click

from grit_runtime import __version__
from grit_runtime.checkpoint import export as writing
from grit_runtime.config import Config
from grit_runtime.engines import ENGINES
from grit_runtime.errors import GritError
from grit_runtime.host.workspace import remove_if_empty
from grit_runtime.oci.argv import Invocation
from grit_runtime.workflow import recorded, register
from grit_runtime.workflow import recover as recovery


def run(config: Config, invocation: Invocation) -> int:
    """Run one of the commands; returns the exit code."""
    try:
        code = _commands.main(
            [invocation.verb, *invocation.args], prog_name="grit-runtime", obj=config, standalone_mode=False
        )
    except click.ClickException as err:
        err.show()
        return 2
    except click.Abort:
        return 130
    return code if isinstance(code, int) else 0


@click.group()
@click.version_option(__version__)
def _commands() -> None:
    """Commands of grit-runtime's own; every other verb is the OCI runtime's."""


@_commands.command()
@click.option("--container", default="", metavar="ID", help="Only of this container, below whatever --root it is.")
@click.pass_obj
def recover(config: Config, container: str) -> int:
    """Undo what killed calls left, of every container.

    The next call for a container does the same by itself; this is for containers that nobody calls for any more. Exits
    with 1 if something could not be undone.
    """
    failed = 0
    for path, found in recovery.workspaces(config.state_dir):
        if container not in ("", found):
            continue
        try:
            outcome = recovery.one(path)
        except GritError as err:
            outcome, failed = str(err), 1
        click.echo(f"{found}: {outcome}")
    for path in recovery.roots(config.state_dir):
        remove_if_empty(path)
    recorded.prune(config.state_dir)
    return failed


@_commands.command("config")
@click.pass_obj
def show_config(config: Config) -> None:
    """Print the configuration in force, defaults included, as JSON."""
    click.echo(json.dumps(asdict(config), indent=2))


@_commands.command()
@click.argument("checkpoint", type=click.Path(file_okay=False))
@click.argument("file", type=click.Path())
def export(checkpoint: str, file: str) -> int:
    """Write a checkpoint of grit-runtime's as one archive, as kubelet's checkpoint API does.

    CHECKPOINT is the directory with grit.json. FILE must not exist. checkpointctl reads it, and so do `restore` and the
    annotation.
    """

    def write() -> int:
        writing.export(os.path.abspath(checkpoint), os.path.abspath(file))
        return 0

    return _said(write)


_engine = click.option("--engine", type=click.Choice(list(ENGINES)), required=True, help="The engine.")
_name = click.option("--runtime-name", default="grit", show_default=True, help="What the engine knows the runtime as.")
_root = click.option("--root", default="/", show_default=True, type=click.Path(), help="Where the node's files are.")
_dry_run = click.option("--dry-run", is_flag=True, help="Show the difference, and change nothing.")


@_commands.command()
@_engine
@_name
@click.option("--binary", default="", help="The launcher, as the engine sees it.  [default: this installation's]")
@click.option(
    "--copy-section",
    is_flag=True,
    help="containerd 1 takes each plugin's settings from the last file that has them: copy those of the CRI plugin.",
)
@_root
@_dry_run
def install(engine: str, runtime_name: str, binary: str, copy_section: bool, root: str, dry_run: bool) -> int:
    """Register the runtime with an engine.

    One file of ours is written where the engine takes one, and the difference shown; no file is changed that isn't
    ours. Exits with 1 if something is left for you to do, which is said on standard error.
    """
    return _register(
        lambda: register.install(
            engine, name=runtime_name, binary=binary, root=root, dry_run=dry_run, copy_section=copy_section
        )
    )


@_commands.command()
@_engine
@_name
@_root
@_dry_run
def uninstall(engine: str, runtime_name: str, root: str, dry_run: bool) -> int:
    """Take away what `install` wrote for an engine.

    A file that somebody changed since stays. Exits with 1 then.
    """
    return _register(lambda: register.uninstall(engine, name=runtime_name, root=root, dry_run=dry_run))


def _register(do: Callable[[], register.Outcome]) -> int:
    def say() -> int:
        outcome = do()
        click.echo(outcome.diff, nl=False)
        for line in outcome.lines:
            click.echo(line, err=True)
        return outcome.code

    return _said(say)


def _said(do: Callable[[], int]) -> int:
    try:
        return do()
    except GritError as err:
        click.echo(f"grit-runtime: {err}", err=True)
        return 1
