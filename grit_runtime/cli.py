"""The commands for people. The only user of click."""

import contextlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict

import click

from grit_runtime import __version__, names
from grit_runtime.checkpoint import export as writing
from grit_runtime.commands import byhand, checkpoints, common, completion, diagnose, doctor, e2e, plan, progress, report
from grit_runtime.commands.common import printed as _print
from grit_runtime.commands.common import said as _said
from grit_runtime.config import Config
from grit_runtime.engines import ENGINES
from grit_runtime.errors import CheckpointError, GritError, UsageError
from grit_runtime.host import pool
from grit_runtime.host.workspace import remove_if_empty
from grit_runtime.inspection import difference, gather, text, words
from grit_runtime.oci.argv import Invocation
from grit_runtime.workflow import interrupted, recorded, register
from grit_runtime.workflow import recover as recovery


def run(config: Config, invocation: Invocation) -> int:
    """Run one of the commands; returns the exit code."""
    try:
        code = _commands.main(
            [invocation.verb, *invocation.args],
            prog_name="grit-runtime",
            obj=config,
            invocation=invocation,
            standalone_mode=False,
        )
    except click.ClickException as err:
        err.show()
        return 2
    except click.Abort:
        return 130
    return code if isinstance(code, int) else 0


@click.group(cls=common.Commands)
@click.version_option(__version__)
def _commands() -> None:
    """Commands of grit-runtime's own; every other verb is the OCI runtime's."""


@_commands.command()
@click.option("--container", default="", metavar="ID", help="Only of this container, below whatever --root it is.")
@click.pass_obj
def recover(config: Config, container: str) -> int:
    """Undo what killed calls and reboots left, of every container.

    The next call for a container does the same by itself; this is for containers that nobody calls for any more.

    \b
    grit-runtime recover
    grit-runtime recover --container 3f2a9c

    Exits with 0, or with 1 if something could not be undone.
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
    if not container:
        try:
            for line in interrupted.sweep(config.checkpoint_roots, config.archive.unpack_dir, config.state_dir):
                click.echo(line)
        except OSError as err:
            click.echo(f"what a reboot left could not be put right: {err}")
            failed = 1
    for path in recovery.roots(config.state_dir):
        remove_if_empty(path)
    recorded.prune(config.state_dir)
    return failed


@_commands.command("config")
@click.pass_obj
def show_config(config: Config) -> None:
    """Print the configuration in force, defaults included, as JSON.

    It is that of /etc/grit-runtime/config.yaml, or of the file that GRIT_RUNTIME_CONFIG names. Which keys there are,
    docs/configuration.md says.

    \b
    grit-runtime config
    GRIT_RUNTIME_CONFIG=new.yaml grit-runtime config | jq .downstream

    Exits with 0, or with 1 and one line that says what is wrong in the file.
    """
    click.echo(json.dumps(asdict(config), indent=2))


@_commands.command()
@click.argument("checkpoint", type=click.Path(file_okay=False))
@click.argument("file", type=click.Path())
@click.option("--compress", type=click.Choice(["none", "zstd"]), default="none", help="How; not at all unless given.")
def export(checkpoint: str, file: str, compress: str) -> int:
    """Write a checkpoint of grit-runtime's as one archive, as kubelet's checkpoint API does.

    CHECKPOINT is the directory with grit.json. FILE must not exist. checkpointctl reads it, and so do `restore` and the
    annotation. A compressed one, as podman's are, is read by the program zstd.

    \b
    grit-runtime export /var/lib/grit-runtime/checkpoints/default/counter-1/counter/checkpoint counter-1.tar
    grit-runtime export --compress zstd /var/lib/grit-runtime/checkpoints/default/counter-1/counter/checkpoint c.tar.zst

    Exits with 0, or with 1 if it could not be written; then there is no FILE.
    """

    def write() -> int:
        size, packed = progress.size(checkpoint), compress == "zstd"
        # zstd reads what we have read.
        with progress.moved("writing", "rchar", 2 * size) if packed else progress.moved("writing", "wchar", size):
            writing.export(os.path.abspath(checkpoint), os.path.abspath(file), compress=packed)
        return 0

    return _said(write)


@_commands.command()
@click.argument("checkpoint", type=click.Path(exists=True))
@click.option("--key", default="", metavar="FILE", help="The private key; `trust.signing-key` unless given.")
@click.pass_obj
def sign(config: Config, checkpoint: str, key: str) -> int:
    """Sign a checkpoint with an Ed25519 key, so that nodes with `trust.require-signature` restore it.

    CHECKPOINT is the directory with grit.json, whose signature is put into it (grit.sig), or an archive, whose
    signature is put beside it (FILE.sig). Everything is read.

    \b
    openssl genpkey -algorithm ed25519 -out key.pem && chmod 600 key.pem
    openssl pkey -in key.pem -pubout -out key.pub.pem      # for `trust.keys`
    grit-runtime sign --key key.pem /var/lib/grit-runtime/checkpoints/default/counter-1/counter/checkpoint

    Exits with 0, or with 1 if it could not be signed.
    """

    def say() -> int:
        from grit_runtime.checkpoint import signature

        file, workers = key or config.trust.signing_key, pool.workers(config.memory.workers)
        if not file:
            raise UsageError("no key to sign with", hint="--key, or `trust.signing-key`")
        if os.path.isdir(checkpoint) and not os.path.isfile(os.path.join(checkpoint, names.MANIFEST)):
            raise CheckpointError(f"{checkpoint} holds no {names.MANIFEST}", hint="name the directory with the images")
        write = signature.sign_directory if os.path.isdir(checkpoint) else signature.sign_file
        with progress.moved("reading", "rchar", progress.size(checkpoint)):
            write(os.path.abspath(checkpoint), file, workers)
        return 0

    return _said(say)


_json = common.as_json_option


@_commands.command("inspect")
@click.argument("checkpoint", type=click.Path())
@click.option("--files", is_flag=True, help="List every open file and every socket.")
@click.option("--mounts", is_flag=True, help="List every mount, with where it came from.")
@click.option("--memory", is_flag=True, help="List every process' mappings, with how much of each is in the images.")
@click.option("--check", is_flag=True, help="Compare the checksums of all files, on all cores. This reads everything.")
@_json
@click.pass_obj
def inspect_checkpoint(
    config: Config, checkpoint: str, files: bool, mounts: bool, memory: bool, check: bool, as_json: bool
) -> int:
    """Show what is in a checkpoint: processes, memory, GPUs, files, sockets, mounts, versions; whether it is whole.

    CHECKPOINT is a directory of images, of whatever runtime, or an archive of kubelet's, podman's or `export`'s.
    Nothing is unpacked and no page is read, however large it is.

    \b
    grit-runtime inspect /var/lib/grit-runtime/checkpoints/default/counter-1/counter
    grit-runtime inspect --memory checkpoint-counter_default-counter-2026.tar
    grit-runtime inspect --json DIR | jq '.processes[].command'

    Exits with 0, or with 1 if it is damaged, incomplete or no checkpoint.
    """

    def say() -> int:
        workers = pool.workers(config.memory.workers) if check else 0
        with progress.moved("reading", "rchar", progress.size(checkpoint)) if check else contextlib.nullcontext():
            found = gather.inspect(os.path.abspath(checkpoint), config.archive, mappings=memory, compare=workers)
        shown = text.render(found, text.Wanted(files=files, mounts=mounts, memory=memory))
        _print(json.dumps(found.document(), indent=2) + "\n" if as_json else shown)
        return 0 if found.sound else 1

    return _said(say)


@_commands.command()
@click.argument("old", type=click.Path())
@click.argument("new", type=click.Path())
@_json
@click.pass_obj
def diff(config: Config, old: str, new: str, as_json: bool) -> int:
    """Show what differs between two checkpoints, such as two of one container, or one before and after a restore.

    Compared are processes, sizes of memory, GPUs, open files, sockets, mounts, versions and config.json with its
    environment; not when and where each was made, and not what stands in memory.

    \b
    grit-runtime diff counter-1/counter counter-2/counter
    grit-runtime diff --json A B | jq '.differences[] | select(.section == "memory")'

    Exits with 0 if nothing differs, 1 if something does, 2 if one of them can't be read whole.
    """

    def say() -> int:
        both = [gather.inspect(os.path.abspath(path), config.archive) for path in (old, new)]
        changes = difference.compare(*both)
        as_text = difference.render(changes)
        _print(json.dumps(difference.document(changes), indent=2) + "\n" if as_json else as_text)
        unsound = [found for found in both if not found.sound]
        for found in unsound:
            said = "; ".join(found.problems[:3]) or "not written to its end"
            click.echo(words.shown(f"grit-runtime: {found.path} is {found.state.value}: {said}"), err=True)
        return 2 if unsound else 1 if changes else 0

    return _said(say, failure=2)


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
    ours.

    \b
    grit-runtime install --engine containerd --dry-run
    grit-runtime install --engine podman

    Exits with 0, or with 1 if something is left for you to do, which is said on standard error.
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

    A file that somebody changed since stays.

    \b
    grit-runtime uninstall --engine containerd --dry-run

    Exits with 0, or with 1 if a file stays.
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


_commands.add_command(byhand.capture_container)
_commands.add_command(byhand.restore_into)
_commands.add_command(checkpoints.checkpoints)
_commands.add_command(checkpoints.prune_checkpoints)
_commands.add_command(completion.command)
_commands.add_command(diagnose.command)
_commands.add_command(doctor.command)
_commands.add_command(e2e.command)
_commands.add_command(plan.command)
_commands.add_command(report.command)
