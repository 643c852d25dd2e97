"""Taking a checkpoint.

The container is frozen by its cgroup, dumped with `--leave-running` (CRIU puts back the freezer's state that it found,
criu/seize.c), and stays frozen until the manifest is on disk. Only then is it killed, or resumed: at every moment
before, going back means resuming it. So nothing that fails, and nobody who kills us, costs the container. The images
are written into `.grit-partial` within the target and moved up when they are complete; what an older checkpoint left
there stays until then.
"""

import os
import shutil
import time
from dataclasses import dataclass
from typing import Any

from grit_runtime import names
from grit_runtime.checkpoint import manifest
from grit_runtime.criu import conf, hints, logs
from grit_runtime.downstream import State, relay
from grit_runtime.errors import CaptureError
from grit_runtime.host import effects, files, proc, run
from grit_runtime.host.transaction import Transaction
from grit_runtime.host.workspace import open_workspace
from grit_runtime.oci import bundle as bundles
from grit_runtime.workflow import (
    contents,
    cudacapture,
    describe,
    external,
    linkremap,
    preflight,
    publish,
    recorded,
    recover,
)
from grit_runtime.workflow.context import Context, new_marker
from grit_runtime.workflow.effects import Pause

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


def capture(context: Context, request: Request) -> None:
    """Dump the container; on any failure it runs on as before.

    Raises:
        CaptureError: the dump failed, or what goes with it.
        DownstreamError: the downstream doesn't know the container, or failed.
    """
    workspace = open_workspace(context.workspace_path, timeout=context.config.timeouts.lock)
    try:
        if recover.settle(workspace) is not None:
            raise _wrong_state(context, names.CREATED)
        state = _require_running(context)
        pids = _processes(context)
        for warning in preflight.require_dumpable(context.container, pids, state.pid):
            context.log.line("warning", f"container {context.container}: {warning}")
        bundle = recorded.bundle_of(context, state)
        partial = os.path.join(request.images, names.PARTIAL)
        header = {
            **context.header("capture"),
            "images": request.images,
            "leave_running": request.leave_running,
            "paused": state.status == names.PAUSED,
        }
    except BaseException:
        workspace.close(remove=not os.path.exists(workspace.journal))
        raise
    transaction = Transaction(workspace, header)
    try:
        _prepare(transaction, request, partial)
        begun = time.monotonic()
        cuda = cudacapture.suspend(context, transaction, state, pids)
        by_plugin = cuda is not None and cuda.plugin
        clock = _freeze(context, transaction, state, thawed=cuda is not None, leave=by_plugin)
        clock["begin"] = begun
        if cuda and not by_plugin:
            cudacapture.require_none_new(context, _processes(context))
        outside = describe.externals(state, bundle)
        facts = describe.container(context, state, bundle, outside)
        try:
            _dump(
                context,
                transaction,
                request,
                partial,
                bundle,
                external.options(outside),
                _plugins(context, transaction, cuda),
            )
        except CaptureError as err:
            raise contents.explained(err, state.pid) from None
        if by_plugin:
            _freeze(context, transaction, state, thawed=True)
        kept = linkremap.keep(transaction, partial, pids, state.pid)
        if cuda:
            facts["cuda"] = cuda.section
        facts["contents"] = contents.save(context, state.pid, bundle, partial)
        clock["dump"] = time.monotonic()
        _write_manifest(context, request, partial, facts, clock)
        for name in kept if request.leave_running else ():
            transaction.undo(name)
        proc.finish_undisturbed()
        transaction.phase(publish.PUBLISHING)
    except BaseException as err:
        transaction.abort(err)
        raise
    publish.finish(transaction.header)
    transaction.close()


def _require_running(context: Context) -> State:
    state = context.downstream.state(context.container, timeout=context.config.timeouts.command)
    if state.status not in (names.RUNNING, names.PAUSED):
        raise _wrong_state(context, state.status)
    return state


def _processes(context: Context) -> list[int]:
    return context.downstream.processes(context.container, timeout=context.config.timeouts.command)


def _wrong_state(context: Context, status: str) -> CaptureError:
    return CaptureError(f"container {context.container} cannot be checkpointed in {status} state")


def _prepare(transaction: Transaction, request: Request, partial: str) -> None:
    if os.path.lexists(partial):
        raise CaptureError(
            f"{partial} exists: another checkpoint into this directory was begun",
            hint="`grit-runtime recover`, or remove it",
        )
    try:
        for effect in effects.missing_directories(request.images):
            transaction.do(effect)
        transaction.do(effects.MakeTree(partial))
    except OSError as err:
        raise CaptureError(f"cannot write the checkpoint to {request.images}: {err.strerror}") from None


def _freeze(
    context: Context, transaction: Transaction, state: State, *, thawed: bool, leave: bool = False
) -> dict[str, float]:
    """Freeze the container for as long as the capture takes.

    One that the caller has paused (containerd always does) stays so, unless CUDA needed it thawed.

    Args:
        thawed: it runs, whatever `state` says.
        leave: let it run: CRIU's CUDA plugin cannot lock a frozen process.
    """
    clock: dict[str, float] = {}
    downstream = context.downstream
    if not leave and (thawed or state.status != names.PAUSED):
        transaction.do(
            Pause(
                downstream.program,
                list(downstream.options),
                downstream.root,
                context.container,
                context.config.timeouts.command,
            )
        )
    clock["freeze"] = time.monotonic()
    return clock


def _dump(
    context: Context,
    transaction: Transaction,
    request: Request,
    partial: str,
    bundle: bundles.Bundle,
    outside: list[str],
    plugins: dict[str, conf.Option],
) -> None:
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
    text = conf.merge(options, _users_options(bundle, env), plugins)
    files.write_atomically(configuration, text.encode())
    work = request.work or workspace.file("work")
    if not request.work:
        os.mkdir(work, 0o700)
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


def _plugins(context: Context, transaction: Transaction, cuda: cudacapture.Suspended | None) -> dict[str, conf.Option]:
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
        offered = context.downstream.call("checkpoint", "--help", timeout=context.config.timeouts.command).out
        names_of_flags += ["link-remap"] if "--link-remap" in offered else []
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


def _write_manifest(
    context: Context, request: Request, partial: str, facts: dict[str, Any], clock: dict[str, float]
) -> None:
    if request.parent:
        _relink_parent(partial, request.parent)
    try:
        sizes = manifest.file_sizes(partial)
        if context.config.fsync:
            for name in sizes:
                files.sync_file(os.path.join(partial, name))
        data = {
            **facts,
            "files": [{"name": name, "bytes": size} for name, size in sizes.items()],
            "bytes": sum(sizes.values()),
            "seconds": {
                "freeze": clock["freeze"] - clock["begin"],
                "dump": clock["dump"] - clock["freeze"],
                "flush": time.monotonic() - clock["dump"],
            },
        }
        files.write_atomically(os.path.join(partial, names.MANIFEST), manifest.encode(data), sync=context.config.fsync)
    except OSError as err:
        raise CaptureError(f"cannot write the checkpoint to {request.images}: {err.strerror}") from None


def _relink_parent(partial: str, parent: str) -> None:
    """The images were one directory deeper while they were written: CRIU's link to the dump before is relative to
    them.
    """
    link = os.path.join(partial, names.PARENT_LINK)
    if os.path.islink(link):
        os.unlink(link)
        os.symlink(parent, link)
