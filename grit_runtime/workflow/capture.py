"""Taking a checkpoint.

The container is frozen by its cgroup, dumped with `--leave-running` (CRIU puts back the freezer's state that it found,
criu/seize.c), and stays frozen until the manifest is on disk. Only then is it killed, or resumed: at every moment
before, going back means resuming it. So nothing that fails, and nobody who kills us, costs the container. The images
are written into `.grit-partial` within the target and moved up when they are complete; what an older checkpoint left
there stays until then.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from grit_runtime import names
from grit_runtime.checkpoint import integrity, manifest
from grit_runtime.downstream import State
from grit_runtime.errors import CaptureError
from grit_runtime.host import effects, files, pool, proc
from grit_runtime.host.transaction import Transaction
from grit_runtime.host.workspace import open_workspace
from grit_runtime.oci import bundle as bundles
from grit_runtime.workflow import (
    contentsave,
    cudasigns,
    describe,
    dump,
    external,
    filling,
    interrupted,
    linkremap,
    memorysave,
    operations,
    preflight,
    publish,
    recorded,
    recover,
    trust,
)
from grit_runtime.workflow.context import Context
from grit_runtime.workflow.dump import Request
from grit_runtime.workflow.effects import Pause

if TYPE_CHECKING:
    from grit_runtime.workflow import cudacapture


@dataclass(slots=True, kw_only=True)
class Held:
    """A container that is frozen, its CUDA in memory, to be dumped; its transaction is open."""

    context: Context
    transaction: Transaction
    request: Request
    state: State
    bundle: bundles.Bundle
    pids: list[int]
    cuda: "cudacapture.Suspended | None" = None
    clock: dict[str, float] = field(default_factory=dict)

    @property
    def by_plugin(self) -> bool:
        """CRIU's plugin takes care of CUDA within the dump: until then the container runs."""
        return self.cuda is not None and self.cuda.plugin


def capture(context: Context, request: Request) -> None:
    """Dump the container; on any failure it runs on as before.

    Raises:
        CaptureError: the dump failed, or what goes with it.
        DownstreamError: the downstream doesn't know the container, or failed.
    """
    with operations.recorded(context, "checkpoint", request.images):
        held = hold(context, request)
        transaction = held.transaction
        try:
            take(held)
            proc.finish_undisturbed()
            transaction.phase(names.PUBLISHING)
        except BaseException as err:
            transaction.abort(err)
            raise
        context.record.mark("publish")
        publish.finish(transaction.header)
        transaction.close()


def hold(context: Context, request: Request) -> Held:
    """Bring the container's CUDA into memory and freeze it; on any failure it runs on as before.

    Raises:
        CaptureError: it can't be dumped as it is, or not frozen.
        DownstreamError: the downstream doesn't know the container, or failed.
    """
    held = _begin(context, request)
    try:
        _hold(held)
    except BaseException as err:
        held.transaction.abort(err)
        raise
    return held


def _begin(context: Context, request: Request) -> Held:
    record = context.record
    record.mark("lock")
    workspace = open_workspace(context.workspace_path, timeout=context.config.timeouts.lock)
    try:
        if recover.settle(workspace) is not None:
            raise _wrong_state(context, names.CREATED)
        filling.wait(context)
        record.mark("look")
        state = _require_running(context)
        pids = _processes(context)
        for warning in preflight.require_dumpable(context.container, pids, state.pid):
            context.log.line("warning", f"container {context.container}: {warning}")
        bundle = recorded.bundle_of(context, state)
        refused = trust.foreign_criu_options(
            bundle.annotations, context.config.state_dir, context.config.trust.criu_config
        )
        if refused:
            raise CaptureError(f"cannot checkpoint container {context.container}: {refused[0]}")
        header = {
            **context.header("capture"),
            "images": request.images,
            "leave_running": request.leave_running,
            **({"staging": request.staging} if request.staging else {}),
            "paused": state.status == names.PAUSED,
        }
    except BaseException:
        workspace.close(remove=not os.path.exists(workspace.journal))
        raise
    transaction = Transaction(workspace, header)
    return Held(context=context, transaction=transaction, request=request, state=state, bundle=bundle, pids=pids)


def _hold(held: Held) -> None:
    context, transaction, state = held.context, held.transaction, held.state
    if context.config.trust.signing_key:
        from grit_runtime.checkpoint import signature

        signature.require_key(context.config.trust.signing_key)
    _prepare(transaction, held.request, _partial(held.request), sync=context.config.fsync)
    mark, begun = context.record.mark, time.monotonic()
    mark("cuda")
    held.cuda = _suspend(
        context, transaction, state, held.bundle, [pid for pid in held.pids if cudasigns.may_use_cuda(pid)]
    )
    mark("freeze")
    held.clock = _freeze(context, transaction, state, thawed=held.cuda is not None, leave=held.by_plugin)
    held.clock["begin"] = begun


def take(held: Held) -> None:
    """Everything up to the complete checkpoint in `.grit-partial`; the container is frozen then."""
    context, transaction, request, state = held.context, held.transaction, held.request, held.state
    bundle, pids, cuda, partial = held.bundle, held.pids, held.cuda, _partial(held.request)
    mark = context.record.mark
    mark("describe")
    if state.status != names.PAUSED or cuda:  # else it was frozen when they were looked at
        pids = _processes(context)
    if cuda and not held.by_plugin:
        from grit_runtime.workflow import cudacapture

        cudacapture.require_none_new(context, pids)
    outside = describe.externals(state, bundle)
    facts = describe.container(context, state, bundle, outside, pids)
    more, options = dump.plugins(context, transaction, cuda), external.options(outside)

    def by_criu() -> None:
        dump.dump(context, transaction, request, partial, bundle, options, more)

    try:
        past = memorysave.begin(context, request, partial, pids, frozen=not held.by_plugin)
        mark("criu")
        checksums = _dump(context, partial, pids, by_criu, past=past)
    except CaptureError as err:
        raise contentsave.explained(err, state.pid) from None
    mark("contents")
    if held.by_plugin:
        _freeze(context, transaction, state, thawed=True)
    kept = linkremap.keep(transaction, partial, pids, state.pid)
    if cuda:
        facts["cuda"] = cuda.section
    log = dump.log_of(request, transaction.workspace)
    facts["versions"]["criu"] = describe.criu_version(log, context.config.timeouts.command)
    facts["contents"] = contentsave.save(context, state.pid, bundle, partial)
    context.record.add(sum(part.get("bytes", 0) for part in facts["contents"].values()))
    held.clock["dump"] = time.monotonic()
    mark("flush")
    _write_manifest(context, request, partial, facts, held.clock, checksums)
    for name in kept if request.leave_running else ():
        transaction.undo(name)


def _partial(request: Request) -> str:
    return os.path.join(request.images, names.PARTIAL)


def _suspend(
    context: Context, transaction: Transaction, state: State, bundle: bundles.Bundle, pids: list[int]
) -> "cudacapture.Suspended | None":
    if not pids:
        return None
    from grit_runtime.workflow import cudacapture

    return cudacapture.suspend(context, transaction, state, bundle, pids)


def _dump(
    context: Context, partial: str, pids: list[int], by_criu: Callable[[], None], *, past: bool
) -> dict[str, list[str]]:
    """The dump, and the memory past CRIU; its checksums."""
    by_criu()
    context.record.mark("memory")
    try:
        return memorysave.finish(context, partial, pids) if past else {}
    except memorysave.UnreachableError as err:
        memorysave.start_over(context, partial, str(err))
        context.record.mark("criu")
        by_criu()
        return {}


def _require_running(context: Context) -> State:
    state = context.downstream.state(context.container, timeout=context.config.timeouts.command)
    if state.status not in (names.RUNNING, names.PAUSED):
        raise _wrong_state(context, state.status)
    return state


def _processes(context: Context) -> list[int]:
    return context.downstream.processes(context.container, timeout=context.config.timeouts.command)


def _wrong_state(context: Context, status: str) -> CaptureError:
    return CaptureError(f"container {context.container} cannot be checkpointed in {status} state")


def _prepare(transaction: Transaction, request: Request, partial: str, *, sync: bool) -> None:
    interrupted.settle(request.images)
    if os.path.lexists(partial):
        raise CaptureError(
            f"{partial} exists: another checkpoint into this directory was begun",
            hint="`grit-runtime recover`, or remove it",
        )
    try:
        made: list[effects.MakeDirectory | effects.MakeShared | effects.MakeTree] = []
        if request.staging:
            made += effects.missing_directories(os.path.dirname(request.staging))
            made.append(effects.MakeShared(request.staging))
        inner = [one for one in effects.missing_directories(request.images) if one.path not in {e.path for e in made}]
        for effect in (*made, *inner, effects.MakeTree(partial)):
            transaction.do(effect)
            if sync:
                files.sync_directory(os.path.dirname(effect.path))
        interrupted.mark(partial)
        if sync:
            files.sync_directory(partial)
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


def _write_manifest(
    context: Context,
    request: Request,
    partial: str,
    facts: dict[str, Any],
    clock: dict[str, float],
    checksums: dict[str, list[str]],
) -> None:
    if request.parent:
        _relink_parent(partial, request.parent)
    try:
        sizes = manifest.file_sizes(partial)
        sums = integrity.of_files(partial, sizes, checksums, pool.workers(context.config.memory.workers))
        if context.config.fsync:
            for name in sizes:
                files.sync_file(os.path.join(partial, name))
        context.record.add(sum(sizes.values()))
        data = {
            **facts,
            "files": [{"name": name, "bytes": size, "checksums": sums[name]} for name, size in sizes.items()],
            "checksums": {"algorithm": integrity.ALGORITHM, "chunk": integrity.CHUNK},
            "bytes": sum(sizes.values()),
            "phases": context.record.phases(),
            "seconds": {
                "freeze": clock["freeze"] - clock["begin"],
                "dump": clock["dump"] - clock["freeze"],
                "flush": time.monotonic() - clock["dump"],
            },
        }
        files.write_atomically(os.path.join(partial, names.MANIFEST), manifest.encode(data), sync=context.config.fsync)
        if context.config.trust.signing_key:
            from grit_runtime.checkpoint import signature

            workers = pool.workers(context.config.memory.workers)
            key = context.config.trust.signing_key
            signature.sign_directory(partial, key, workers, but=frozenset({names.WRITER}))
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
