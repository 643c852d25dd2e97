"""The downstream's `checkpoint` of a frozen container: CRIU's options, the memory past CRIU, and what it says when it
fails.
"""

import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from grit_runtime import names
from grit_runtime.criu import conf, hints, logs
from grit_runtime.downstream import relay
from grit_runtime.errors import CaptureError
from grit_runtime.host import effects, files, run
from grit_runtime.host.transaction import Transaction
from grit_runtime.host.workspace import Workspace
from grit_runtime.oci import bundle as bundles
from grit_runtime.workflow import describe
from grit_runtime.workflow.context import Context, new_marker

if TYPE_CHECKING:
    from grit_runtime.workflow import cudacapture

# runc sends these by RPC whether or not they were asked for, over what a configuration file said before: they have to
# be flags.
_RPC_FLAGS = ("tcp-established", "ext-unix-sk", "shell-job", "file-locks")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A checkpoint as the caller asked for it; paths are absolute."""

    images: str
    work: str
    """Where CRIU logs; empty for beside the images, as runc has it, once the dump is complete."""
    parent: str
    leave_running: bool
    flags: tuple[str, ...]
    """What else is handed on to the downstream."""
    staging: str = ""
    """Above `images`, the directory of a set (`podset`), for as long as not all of it is complete."""


def dump(
    context: Context,
    transaction: Transaction,
    request: Request,
    partial: str,
    bundle: bundles.Bundle,
    outside: list[str],
    more: dict[str, conf.Option],
) -> None:
    """Have the downstream dump the container into `partial`.

    Args:
        outside: CRIU's option `external`.
        more: other options of CRIU's, over the user's.

    Raises:
        CaptureError: it failed; the container is frozen as it was.
    """
    marker = new_marker()
    programs = effects.Programs(marker, partial, grace=context.config.timeouts.command)
    kept = effects.cgroup_options(context.config.state_dir)
    for effect in kept:
        transaction.do(effect)
    transaction.do(programs)
    workspace = transaction.workspace
    configuration, log_file = workspace.file("criu.conf"), workspace.file("runc.log")
    env = run.caller_environment()
    options = _with_external(context.config.criu_dump, outside)
    flags = [f"--{name}" for name in _as_flags(context, options) if f"--{name}" not in request.flags]
    text = conf.merge(options, _users_options(bundle, env), more)
    files.write_atomically(configuration, text.encode())
    work = request.work or workspace.file("work")
    if not request.work:
        os.makedirs(work, mode=0o700, exist_ok=True)
    name, _, value = marker.partition("=")
    argv = context.downstream.argv(
        log_file, "checkpoint", "--leave-running", "--image-path", partial,
        "--work-path", work,
        *(["--parent-path", os.path.join("..", request.parent)] if request.parent else []),
        *flags, *request.flags, context.container,
    )  # fmt: skip
    result = run.run(
        argv, timeout=context.config.timeouts.checkpoint, env={**env, name: value, names.CRIU_CONFIG_ENV: configuration}
    )
    said = relay(context.log, log_file)
    if not result.ok:
        raise _failed(context, request, work, said, result)
    for done in (programs, *kept):
        transaction.undo(done)
    if not request.work:
        _keep_beside_images(work, partial)


def log_of(request: Request, workspace: Workspace) -> str:
    """CRIU's log, until the transaction ends."""
    return os.path.join(request.work or workspace.file("work"), "dump.log")


def plugins(context: Context, transaction: Transaction, cuda: "cudacapture.Suspended | None") -> dict[str, conf.Option]:
    """Where CRIU finds plugins: for a container with CUDA that one which owns it, or none at all."""
    if cuda is None:
        return {}
    if cuda.plugin:
        # The plugin locks within CRIU's time limit (criu/seize.c, collect_pstree).
        return {"libdir": context.config.cuda.plugin_dir, "timeout": int(context.config.cuda.timeout)}
    empty = transaction.workspace.file(names.NO_PLUGINS)
    os.mkdir(empty, 0o700)
    return {"libdir": empty}


def _with_external(options: dict[str, conf.Option], more: list[str]) -> dict[str, conf.Option]:
    """The site's options, with `external` for what runc doesn't know; the site's own come last, for CRIU takes the last
    of two for one key (criu/external.c, add_external).
    """
    own = options.get("external", [])
    listed = [str(item) for item in own] if isinstance(own, list) else [str(own)]
    return {**options, "external": [*more, *listed]} if more else {**options}


def _as_flags(context: Context, options: dict[str, conf.Option]) -> list[str]:
    """Take out of `options` those that have to be flags of the downstream's `checkpoint`."""
    names_of_flags = list(_RPC_FLAGS)
    if options.get("link-remap"):
        # runc sends it since 1.3, and has a flag for it since then.
        timeout = context.config.timeouts.command
        offered = context.downstream.has_flag("checkpoint", "--link-remap", since=(1, 3), timeout=timeout)
        names_of_flags += ["link-remap"] if offered else []
    return [name for name in names_of_flags if options.pop(name, False)]


def _users_options(bundle: bundles.Bundle, env: dict[str, str]) -> str:
    """What the user's CRIU configuration says, for the one file of ours that CRIU reads before runc's options.

    A container that we restored carries our own `org.criu.config`, whose file is gone: runc's default file doesn't
    count then, so it is merged here.
    """
    texts = [files.read_text(env[names.CRIU_CONFIG_ENV])] if env.get(names.CRIU_CONFIG_ENV) else []
    texts.append(files.read_text(bundle.annotations.get(names.CRIU_CONFIG_ANNOTATION, names.CRIU_DEFAULT_CONFIG)))
    return "".join(text if text.endswith("\n") else f"{text}\n" for text in texts if text)


def _keep_beside_images(work: str, partial: str) -> None:
    """runc's default is to log among the images. While the dump runs our tmpfs is better: a full disk can't eat the
    log.
    """
    for name in os.listdir(work):
        shutil.copyfile(os.path.join(work, name), os.path.join(partial, name))


def _failed(context: Context, request: Request, work: str, said: str, result: run.Result) -> CaptureError:
    """The error of a failed dump. Its log is about to be removed if it lies in our workspace."""
    file = os.path.join(work, "dump.log")
    cause = logs.reason(file) or said or result.err or result.describe()
    kept = file if request.work else describe.keep_log(context.config.log_dir, context.container, file)
    return CaptureError(f"cannot dump container {context.container}: {cause}", hint=hints.with_log(file, kept))
