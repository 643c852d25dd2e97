"""Taking the containers of a pod as one checkpoint: all of them, at one moment, or none.

Every container is frozen, and its CUDA in memory, before the first is dumped; one that fails frees them all. Their
checkpoints are made in a directory beside the final one, which gets its name when all are complete, in one rename: a
set of that name is there whole or not at all. Only then does a container end or run on. Whoever kills us before the
rename leaves containers that run on, for each has a journal of its own, by which its part of the set goes, too.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace

from grit_runtime import names
from grit_runtime.errors import CaptureError, CheckpointError, UsageError
from grit_runtime.host import files, proc
from grit_runtime.workflow import capture, interrupted, operations, prune, publish
from grit_runtime.workflow.byhand import Capture
from grit_runtime.workflow.capture import Held

HIDDEN = ".grit-set-"


def take(asked: Sequence[Capture], ends: Callable[[], bool]) -> str:
    """Capture the containers of one pod, all at one moment; on any failure all of them run on as before.

    Args:
        asked: as `byhand.plan_capture` made them, by one name; where there is nothing of that name yet.
        ends: asked once all are complete, the containers still frozen: whether they end there; else they run on.

    Returns:
        The directory that holds a directory for each.

    Raises:
        UsageError: they aren't containers of one pod.
        CaptureError: one could not be captured, or the set not be written.
        CheckpointError: there is a checkpoint of that name.
    """
    target = _target(asked)
    if os.path.lexists(target):
        raise CheckpointError(f"there is a checkpoint at {target}", hint="choose another --name, or remove it")
    _sweep(os.path.dirname(target), asked[0].context.config.state_dir)
    staging = _hidden(target)
    # Nothing ends before the set is complete: until then each is to run on, whoever kills us.
    inner = [
        replace(one.request, images=inside(asked, one.request.images), staging=staging, leave_running=True)
        for one in asked
    ]
    with ExitStack() as stack:
        for one in asked:
            stack.enter_context(operations.recorded(one.context, "checkpoint", one.request.images))
        _take([replace(one, request=request) for one, request in zip(asked, inner, strict=True)], target, ends)
    return target


def _target(asked: Sequence[Capture]) -> str:
    """The directory that the checkpoints are to be in."""
    sandboxes = {one.sandbox for one in asked}
    folders = {os.path.dirname(os.path.dirname(one.request.images)) for one in asked}
    entries = {one.request.images for one in asked}
    if len(sandboxes) > 1 or "" in sandboxes or len(folders) > 1:
        raise UsageError(
            "these containers are not of one pod", hint="several are captured together only if their annotations say so"
        )
    if len(entries) < len(asked):
        raise UsageError("two of these containers have one name in their pod")
    return folders.pop()


def _sweep(folder: str, state_dir: str) -> None:
    """Remove what captures left that nothing knows any more: this machine went down, and the journals with it. Another
    one may be writing to the same storage.
    """
    machine, boot = _writer()
    if not machine:
        return
    try:
        mine = [name for name in os.listdir(folder) if name.startswith(HIDDEN) and f"-{machine}-" in name]
        used = prune.in_use(state_dir) if mine else []
        for path in (os.path.join(folder, name) for name in mine):
            if f"-{machine}-{boot}-" not in path or not any(f"{other}/".startswith(f"{path}/") for other in used):
                files.remove_tree(path)
    except (OSError, CheckpointError):
        return  # it takes room; the next one tries again


def inside(asked: Sequence[Capture], images: str) -> str:
    """Where a checkpoint is made that will be at `images`."""
    target = _target(asked)
    return os.path.join(_hidden(target), os.path.relpath(images, target))


def _hidden(target: str) -> str:
    machine, boot = _writer()
    name = f"{HIDDEN}{os.path.basename(target)}-{machine}-{boot}-{os.getpid()}"
    return os.path.join(os.path.dirname(target), name)


def _writer() -> tuple[str, str]:
    """This machine, empty if it isn't known, and this boot of it; short, for a name."""
    machine, boot = interrupted.machine_and_boot()
    return machine[:12], boot[:8]


def _take(asked: Sequence[Capture], target: str, ends: Callable[[], bool]) -> None:
    held: list[Held] = []
    try:
        for one in asked:
            one.context.record.mark("wait")
        for one in asked:
            held.append(capture.hold(one.context, one.request))
            if held[-1].by_plugin and len(asked) > 1:
                raise CaptureError(
                    f"container {one.context.container} has its CUDA saved by CRIU's plugin, which can't hold it while "
                    "others are dumped",
                    hint="set `cuda.mode` to `driver` to capture several containers at one moment",
                )
            one.context.record.mark("wait")
        for container in held:
            capture.take(container)
            container.context.record.mark("wait")
        proc.finish_undisturbed()
        for container in held:
            container.transaction.phase(names.PUBLISHING)
    except BaseException as err:
        for container in reversed(held):
            container.transaction.abort(err)
        raise
    try:
        for container in held:
            publish.publish(container.request.images)
        files.sync_directory(_hidden(target))
        os.rename(_hidden(target), target)
        files.sync_directory(os.path.dirname(target))
    except OSError as err:
        _end(held, stop=False)
        raise CaptureError(f"cannot write the checkpoint to {target}: {err.strerror}") from None
    stop = False
    try:
        stop = ends()
    finally:
        _end(held, stop=stop)


def _end(held: Sequence[Held], *, stop: bool) -> None:
    """Let the containers go, or end them. One that fails doesn't keep the others.

    Raises:
        CaptureError: the first failure.
    """
    failures: list[CaptureError | OSError] = []
    for container in held:
        container.context.record.mark("publish")
        if stop:
            container.transaction.amend({"leave_running": False})
        try:
            publish.finish(container.transaction.header)
        except (CaptureError, OSError) as err:
            failures.append(err)
            container.transaction.close(keep=True)
        else:
            container.transaction.close()
    if failures:
        raise CaptureError(str(failures[0]))
