"""The end of a capture: a complete dump becomes the checkpoint, and the container goes its way.

Every step can be done again: a later process goes on from wherever a killed one was.
"""

import os
import shutil
import time
from typing import Any

from grit_runtime import names
from grit_runtime.checkpoint import manifest
from grit_runtime.downstream import Downstream
from grit_runtime.errors import CaptureError, GritError
from grit_runtime.host import cgroups, files, proc, run
from grit_runtime.host.effects import MakeShared
from grit_runtime.workflow.effects import downstream_of, pause, resume


def finish(header: dict[str, Any]) -> None:
    """Publish the images, then kill the container or let it run on, as the journal's header says.

    A set that has not got its name by now is not whole: what is there of this container goes.

    Raises:
        CaptureError: the checkpoint stands, but the container could not be removed, or its CUDA not brought back.
        OSError: the images could not be moved.
    """
    staging = header.get("staging", "")
    if staging and os.path.isdir(staging):
        files.remove_tree(os.path.dirname(header["images"]))
        MakeShared(staging).undo()
    else:
        publish(header["images"])
    downstream = downstream_of(header["program"], header["options"], header["root"])
    container, timeout = header["container"], header["timeout"]
    cuda = header.get("cuda")
    if not header["leave_running"]:
        # What runc would look for every 100 ms.
        cgroups.end(downstream.cgroup_paths(container), downstream.init(container), timeout=timeout)
        if cuda:
            _end_cuda(downstream, container, [pid for pid, _, _ in cuda["targets"]], timeout)
        result = downstream.call("delete", "--force", container, timeout=timeout)
        if not result.ok and downstream.has(container):
            raise CaptureError(
                f"the checkpoint is complete, but container {container} could not be removed: {result.err}"
            )
        return
    if cuda or not header["paused"]:
        resume(downstream, container, timeout)
    if cuda:
        _bring_cuda_back(container, cuda)
        if header["paused"]:
            pause(downstream, container, timeout)


def _bring_cuda_back(container: str, suspended: dict[str, Any]) -> None:
    """Undo it; CRIU's plugin, if it had it, has done so, or failed and told nobody."""
    from grit_runtime.cuda.states import CudaError
    from grit_runtime.workflow.cudastate import CudaSuspended

    try:
        CudaSuspended(**suspended).undo()
    except CudaError as err:
        raise CaptureError(
            f"the checkpoint is complete, but CUDA of container {container} could not be brought back: {err}"
        ) from None


def _end_cuda(downstream: Downstream, container: str, pids: list[int], timeout: float) -> None:
    """Kill the container and wait until its CUDA processes are over.

    They hold what a restore needs until the driver has let go of them, which takes longer than runc waits: its cgroup,
    and the abstract socket `cuda-uvmfd-..` in a network namespace that a restored container may share.
    """
    if all(proc.has_ended(pid) for pid in pids):
        return
    downstream.call("kill", container, "KILL", timeout=timeout)
    if downstream.has(container):
        resume(downstream, container, timeout)  # on cgroup v1 a frozen process doesn't die
    deadline = time.monotonic() + timeout
    while not all(proc.has_ended(pid) for pid in pids) and run.wait_until(deadline):
        continue


def publish(images: str) -> None:
    """Move a complete dump up into its directory, the manifest last; an older checkpoint's manifest goes first, its
    files then.
    """
    partial = os.path.join(images, names.PARTIAL)
    if not os.path.isdir(partial):
        return
    if os.path.lexists(os.path.join(partial, names.MANIFEST)):
        _remove_older(images)
        for name in sorted(set(os.listdir(partial)) - {names.MANIFEST, names.WRITER}):
            _move_up(partial, images, name)
        files.sync_directory(images)
        os.rename(os.path.join(partial, names.MANIFEST), os.path.join(images, names.MANIFEST))
        files.sync_directory(images)  # before `.grit-partial` may be gone: without both it would look like plain images
    files.unlink_if_there(os.path.join(partial, names.WRITER))
    os.rmdir(partial)
    files.sync_directory(images)


def _remove_older(images: str) -> None:
    """Remove the checkpoint that lies here. Its manifest loses its name first, so that it counts as incomplete from now
    on, and says until the end what else goes: nothing has moved up while it is there.
    """
    older = os.path.join(images, names.OLDER)
    try:
        os.rename(os.path.join(images, names.MANIFEST), older)
    except FileNotFoundError:
        if not os.path.lexists(older):
            return
    files.sync_directory(images)  # or a power loss could leave the old manifest beside new files
    files.unlink_if_there(os.path.join(images, names.SIGNATURE))
    for name in _listed(older):
        if "/" not in name:
            files.unlink_if_there(os.path.join(images, name))
    files.sync_directory(images)
    os.unlink(older)
    files.sync_directory(images)  # or one could bring it back beside files that have moved up


def _listed(path: str) -> tuple[str, ...]:
    try:
        return tuple(manifest.checked(path, files.read_json(path, manifest.MAX_BYTES)).sizes)
    except (GritError, OSError, ValueError):
        return ()  # damaged: what it listed is overwritten, or stays


def _move_up(partial: str, images: str, name: str) -> None:
    target = os.path.join(images, name)
    if os.path.isdir(target) and not os.path.islink(target):
        shutil.rmtree(target)
    os.rename(os.path.join(partial, name), target)
