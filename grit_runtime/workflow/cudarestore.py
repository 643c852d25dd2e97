"""CUDA at a restore: looking before anything is touched, and bringing it back once CRIU is done.

It is brought back while the container is still stopped: each process is continued with all of its threads held but the
one in which the driver works (host/hold.py). So no instruction of the container's own runs before `start`, and what
can't be brought back fails `create`, not `start`. All of it happens from outside the container's cgroup: the driver
opens its devices through us, whatever the container may open.
"""

import os
import stat
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from grit_runtime import names
from grit_runtime.checkpoint.manifest import Manifest
from grit_runtime.criu.images import Changes, Images
from grit_runtime.cuda import api as cuda
from grit_runtime.cuda import processes, states
from grit_runtime.cuda.gpus import is_back
from grit_runtime.cuda.processes import ProcessError
from grit_runtime.cuda.states import CudaError, State
from grit_runtime.errors import RestoreError
from grit_runtime.host import hold, hugepages, proc
from grit_runtime.oci.bundle import Bundle
from grit_runtime.workflow import cudaplan
from grit_runtime.workflow.context import Context
from grit_runtime.workflow.cudaplan import CudaPlan, Device, Process
from grit_runtime.workflow.cudasigns import LIBRARY, PLUGIN
from grit_runtime.workflow.cudastate import huge_pages, settings

INVENTORY = "inventory.img"
_THREAD_NAME = "cuda"  # of the driver's own threads
_STOPPING = 5.0  # seconds for a thread to stop


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A restore with CUDA: the plan, and the driver at hand."""

    plan: CudaPlan
    api: cuda.Api | None
    criu: dict[str, str]
    """CRIU's options: a directory without plugins."""
    rewrites: dict[str, Changes]

    @property
    def problems(self) -> tuple[str, ...]:
        """What is missing."""
        return self.plan.problems

    def huge_pages(self, context: Context) -> hugepages.HugePages | None:
        """The effect that makes memory be taken in huge pages, if there is one."""
        return huge_pages(context.config)

    def in_huge_pages(self) -> tuple[int, ...]:
        """The pids within the container of the CUDA processes, as far as somebody recorded them, if they get any."""
        known = self.plan.recording.processes if self.plan.recording else ()
        return tuple(process.pid for process in known) if hugepages.for_all() else ()

    def staging(self) -> dict[int, tuple[tuple[int, int], ...]]:
        """Start and end of the driver's staging memory by the pid within the container, as far as somebody saw it."""
        known = self.plan.recording.processes if self.plan.recording else ()
        return {process.pid: process.staging for process in known if process.staging}

    def all_of_them(self, pids: Collection[int]) -> bool:
        """Whether these, as the host sees them, are all of the CUDA processes."""
        known = self.plan.recording.processes if self.plan.recording else ()
        return bool(known) and {process.pid for process in known} <= {proc.inner_pid(pid) for pid in pids}

    def with_devices(self, config: dict[str, Any]) -> dict[str, Any]:
        """config.json with the GPUs' device nodes."""
        return cudaplan.edited(config, self.plan.devices)

    def close(self) -> None:
        """Let go of the driver."""
        if self.api is not None:
            self.api.close()


def prepare(context: Context, bundle: Bundle, decoded: Images, manifest: Manifest | None) -> Prepared:
    """Look at the CUDA of a checkpoint that may hold some (`cudasigns`), and at this node's GPUs.

    The caller closes what it gets.
    """
    section = manifest.data.get("cuda") if manifest else None
    recording = cudaplan.recorded(section, os.path.join(decoded.path, names.MANIFEST))
    rewrites: dict[str, Changes] = {}
    if PLUGIN in decoded.plugins:
        # What CRIU's plugin left is what any of the API's users leaves. Its own way back reports success for a process
        # that it could not ask (criu#2993), and did not end on tasks that stay stopped: CRIU is told of no plugin.
        others = [name for name in decoded.plugins if name != PLUGIN]
        rewrites = {INVENTORY: {0: {"plugins_entry": {"plugins": others} if others else None}}}
    folder = os.path.join(context.workspace_path, names.NO_PLUGINS)
    asked = settings(context.config)
    try:
        api: cuda.Api | None = cuda.connect(asked)
        problems: tuple[str, ...] = ()
    except CudaError as err:
        api, problems = None, (f"the checkpoint has CUDA processes, and {err}",)
    try:
        plan = cudaplan.make(recording, bundle, cuda.survey(asked, api), _devices())
    except BaseException:
        if api is not None:
            api.close()
        raise
    merged = CudaPlan(
        recording=plan.recording,
        device_map=plan.device_map,
        devices=plan.devices,
        problems=problems or plan.problems,
        warnings=plan.warnings,
    )
    return Prepared(plan=merged, api=api, criu={"libdir": folder}, rewrites=rewrites)


def bring_back(context: Context, prepared: Prepared, pids: list[int], *, stopped: bool) -> None:
    """Bring CUDA back in every process of the checkpoint that had it, and verify it.

    Args:
        pids: what is in the container's cgroup.
        stopped: the container's tasks are stopped, and must be so afterwards.

    Raises:
        RestoreError: a process is missing, CUDA said no, or memory is missing on a GPU.
    """
    assert prepared.api is not None
    try:
        found = _processes(context, prepared, pids)
        if not stopped:
            _restore(context, prepared, list(found), found)
            return
        with hold.held(found, _free(found), timeout=_STOPPING):
            _restore(context, prepared, list(found), found)
    except ProcessError as err:
        raise _failed(context, f"process {_named(err.pid)}: {err}", _hint(err, prepared.plan)) from None
    except CudaError as err:
        raise _failed(context, str(err), "") from None
    except hold.HoldError as err:
        raise _failed(context, str(err.strerror or err), "") from None


def repair_devices(pid: int, devices: tuple[Device, ...]) -> None:
    """Give the container's /dev the nodes of this host: CRIU brings the old host's back, whose numbers may be others.

    Raises:
        RestoreError: a node can't be made.
    """
    root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY)
    try:
        directory = os.open("dev", os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=root)
    except OSError as err:
        raise RestoreError(f"cannot open the container's /dev: {err.strerror}") from None
    finally:
        os.close(root)
    try:
        for device in devices:
            _repair(directory, device)
    finally:
        os.close(directory)


def _repair(directory: int, device: Device) -> None:
    name, number = os.path.basename(device.path), os.makedev(device.major, device.minor)
    try:
        there = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if stat.S_ISCHR(there.st_mode) and there.st_rdev == number:
            return
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        pass
    except OSError as err:
        raise RestoreError(f"cannot replace the container's /dev/{name}: {err.strerror}") from None
    mask = os.umask(0)  # a chmod afterwards would follow what somebody put there instead
    try:
        os.mknod(name, 0o666 | stat.S_IFCHR, number, dir_fd=directory)
    except OSError as err:
        raise RestoreError(f"cannot make the container's /dev/{name}: {err.strerror}") from None
    finally:
        os.umask(mask)


def _devices() -> dict[str, Device]:
    found = {}
    for name in sorted(os.listdir("/dev")):
        if name.startswith("nvidia"):
            there = os.stat(f"/dev/{name}")
            if stat.S_ISCHR(there.st_mode):
                path = f"/dev/{name}"
                found[path] = Device(path=path, major=os.major(there.st_rdev), minor=os.minor(there.st_rdev))
    return found


def _processes(context: Context, prepared: Prepared, pids: list[int]) -> dict[int, Process | None]:
    """Host pid to what was recorded of it, of the processes that had CUDA, or may have."""
    recording = prepared.plan.recording
    if recording is None:
        return {pid: None for pid in pids if proc.maps_file(pid, LIBRARY)}
    inner = {proc.inner_pid(pid): pid for pid in pids}
    missing = [str(process.pid) for process in recording.processes if process.pid not in inner]
    if missing:
        raise _failed(context, f"process {', '.join(missing)}, which used CUDA, is gone", "")
    return {inner[process.pid]: process for process in recording.processes}


def _free(found: dict[int, Process | None]) -> list[int]:
    """The threads that may run: the driver's restore thread; where nobody recorded it, all that are the driver's."""
    free = []
    for pid, process in found.items():
        known = proc.thread_by_inner_id(pid, process.thread) if process else None
        if known is not None:
            free.append(known)
        else:
            free += [t for t in proc.threads(pid) if proc.thread_name(pid, t).startswith(_THREAD_NAME)]
    return free


def _restore(context: Context, prepared: Prepared, pids: list[int], found: dict[int, Process | None]) -> None:
    api, plan = prepared.api, prepared.plan
    assert api is not None
    timeout, asked = context.config.cuda.timeout, settings(context.config)
    if plan.recording is None:
        pids = list(processes.restore_threads(api, pids, timeout=asked.timeout))
    if not pids:
        return
    took = processes.resume(api, dict.fromkeys(pids, State.RUNNING), timeout=timeout, device_map=plan.device_map)
    said = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in took.items())
    context.log.line("info", f"container {context.container}: CUDA of {len(pids)} processes is back: {said}")
    node = cuda.survey(asked, api)
    places = dict(plan.device_map)
    for pid in pids:
        process = found[pid]
        now = node.used(pid) if node else None
        if process is None or process.memory is None or now is None:
            continue
        for uuid, recorded in process.memory.items():
            there = now.get(places.get(uuid, uuid), 0)
            if not is_back(recorded, there):
                raise _failed(
                    context,
                    f"process {_named(pid)} has {there >> 20} MiB on GPU {places.get(uuid, uuid)} "
                    f"instead of {recorded >> 20} MiB",
                    "",
                )


def _hint(err: ProcessError, plan: CudaPlan) -> str:
    if err.code == states.INVALID_VALUE and plan.device_map:
        moved = ", ".join(f"{old} to {new}" for old, new in plan.device_map)
        return f"the driver does not take the map of GPUs {moved}; restore it on its own GPUs"
    if err.code == states.INVALID_VALUE:
        return (
            "before driver 610 a process that has imported memory by CUDA IPC cannot be restored, and some that have "
            "mapped memory from GPU to GPU cannot"
        )
    if err.code == states.OUT_OF_MEMORY:
        return "the GPU's memory was taken meanwhile; a new pod can be restored when it is free"
    return ""


def _failed(context: Context, why: str, hint: str) -> RestoreError:
    return RestoreError(f"cannot bring back CUDA in container {context.container}: {why}", hint=hint)


def _named(pid: int) -> str:
    return f"{proc.inner_pid(pid)} ({' '.join(proc.command_line(pid))[:80]})"
