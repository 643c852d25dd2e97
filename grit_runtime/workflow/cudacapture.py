"""CUDA at a capture: finding the processes, refusing what the driver would not bring back, and the way into memory.

It comes before the freeze, and a container that its caller has paused is let run for it: a lock does not return from a
frozen process, whatever timeout it was told (measured, driver 580). The CPU side runs on meanwhile and is frozen
afterwards; every CUDA call in it waits from the lock on.
"""

import os
from dataclasses import asdict, dataclass, field
from typing import Any

from grit_runtime import names
from grit_runtime.cuda import api as cuda
from grit_runtime.cuda import processes, states
from grit_runtime.cuda.gpus import Node
from grit_runtime.cuda.processes import ProcessError
from grit_runtime.cuda.states import CudaError, Operation, State
from grit_runtime.downstream import State as ContainerState
from grit_runtime.errors import CaptureError
from grit_runtime.host import cgroups, nccl, proc, run, shared
from grit_runtime.host.transaction import Transaction
from grit_runtime.oci.bundle import Bundle
from grit_runtime.workflow import cudaplan, staging
from grit_runtime.workflow.context import Context
from grit_runtime.workflow.cudasigns import DEVICES
from grit_runtime.workflow.cudastate import CudaSuspended, huge_pages, settings
from grit_runtime.workflow.effects import Thaw

_STOPPED = "T"
_PLUGIN = "cuda_plugin.so"
_PROGRAM = "cuda-checkpoint"  # as the plugin calls it
_IPC = 610  # the first driver that restores memory imported by CUDA IPC


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspended:
    """What became of CUDA."""

    section: dict[str, Any]
    """The manifest's."""
    seconds: dict[str, float] = field(default_factory=dict)
    plugin: bool = False
    """CRIU's plugin does it, within the dump."""


def suspend(
    context: Context, transaction: Transaction, state: ContainerState, bundle: Bundle, found: list[int]
) -> Suspended | None:
    """Take every CUDA process of the container into memory, or leave that to CRIU's plugin.

    Args:
        found: its processes that may use CUDA.

    Returns:
        None if none of them does. A container that was paused runs afterwards otherwise.

    Raises:
        CaptureError: one of them can't be checkpointed, or wasn't; the transaction's end brings back what was done.
    """
    if context.config.cuda.mode == names.CUDA_PLUGIN:
        _require_plugin(context)
    try:
        api = cuda.connect(settings(context.config))
    except CudaError as err:
        raise _failed(context, f"it has processes that use CUDA ({_named(found)}), and {err}") from None
    try:
        return _suspend(context, transaction, state, bundle, found, api)
    except ProcessError as err:
        raise _failed(context, f"{_named([err.pid])}: {err}", hint=_hint(context, err)) from None
    except CudaError as err:
        raise _failed(context, str(err)) from None
    finally:
        api.close()


def _suspend(
    context: Context,
    transaction: Transaction,
    state: ContainerState,
    bundle: Bundle,
    found: list[int],
    api: cuda.Api,
) -> Suspended | None:
    asked = settings(context.config)
    node = cuda.survey(asked, api)
    paused = state.status == names.PAUSED
    _refuse(context, found, node, stopped=[] if paused else [pid for pid in found if proc.state(pid) == _STOPPED])
    if paused:
        downstream = context.downstream
        transaction.do(
            Thaw(
                downstream.program,
                list(downstream.options),
                downstream.root,
                context.container,
                context.config.timeouts.command,
            )
        )
    threads = processes.restore_threads(api, found, timeout=asked.timeout)
    _refuse_devices(context, [pid for pid in found if pid not in threads])
    if not threads:
        return Suspended(section={}) if paused else None
    initial = _states(context, api, node, threads)
    section = _section(api, node, threads, initial, cudaplan.granted(bundle, node) if node else [])
    _require_memory(context, state.pid, node, threads)
    effect = CudaSuspended(
        mode=api.name,
        library_path=list(asked.library_path),
        program=asked.program,
        timeout=asked.timeout,
        move_timeout=context.config.cuda.timeout,
        targets=[[pid, proc.start_time(pid) or 0, int(each)] for pid, each in initial.items()],
    )
    transaction.amend({"cuda": asdict(effect)})
    transaction.do(effect)
    if context.config.cuda.mode == names.CUDA_PLUGIN:
        return Suspended(section={**section, "mode": names.CUDA_PLUGIN}, plugin=True)
    huge = huge_pages(context.config)
    if huge:
        transaction.do(huge)
    switched = context.record.begin("huge pages", huge.describe()) if huge else None
    with staging.seen(context, threads, section):
        seconds = processes.suspend(
            api, initial, lock_timeout=context.config.cuda.lock_timeout, timeout=context.config.cuda.timeout
        )
    if huge and switched:
        transaction.undo(huge)
        context.record.end(switched)
    context.record.took({f"cuda {step}": each for step, each in seconds.items()})
    return Suspended(section={**section, "seconds": seconds}, seconds=seconds)


def _states(context: Context, api: cuda.Api, node: Node | None, threads: dict[int, int]) -> dict[int, State]:
    """What CUDA state each process is in. Raises CaptureError: one of them could not be brought back."""
    initial = processes.settled(api, list(threads), timeout=context.config.timeouts.command)
    failed = [pid for pid, each in initial.items() if each is State.FAILED]
    if failed:
        raise _failed(context, f"{_named(failed)}: its CUDA state is failed: an earlier checkpoint of it went wrong")
    if node and node.branch < _IPC and len(threads) > 1:
        _refuse_ipc(context, node, list(threads))
    if node and context.config.cuda.multi_gpu == names.CUDA_MULTI_GPU_REFUSE:
        _refuse_multi_gpu(context, node, list(threads))
    return initial


def require_none_new(context: Context, pids: list[int]) -> None:
    """Once the container is frozen: no process may have begun to use a GPU meanwhile.

    Raises:
        CaptureError: one has.
    """
    _refuse_devices(context, pids)


def _require_plugin(context: Context) -> None:
    """Without its program the plugin is silently none (cuda_plugin.c, cuda_plugin_init), and CRIU complains of what it
    finds then.
    """
    plugin = os.path.join(context.config.cuda.plugin_dir, _PLUGIN)
    if not os.path.exists(plugin):
        raise _failed(context, f"`cuda.mode` is criu-plugin, and there is no {plugin}", hint="set `cuda.plugin-dir`")
    if run.find_program(_PROGRAM, run.caller_environment()) is None:
        raise _failed(context, f"`cuda.mode` is criu-plugin, and CRIU's plugin needs {_PROGRAM} in PATH")


def _refuse(context: Context, found: list[int], node: Node | None, stopped: list[int]) -> None:
    """What the driver would take and not give back, or not take at all, as far as it can be seen from here."""
    if stopped:
        raise _failed(
            context,
            f"{_named(stopped)} is stopped, and the CUDA driver does not answer for a stopped process",
            hint="continue it with SIGCONT first",
        )
    if node is None:
        return
    clients = sorted({pid for gpu in node.gpus for pid in gpu.mps_clients} & set(found))
    if clients:
        raise _failed(context, f"{_named(clients)} is a client of MPS, whose context cannot be checkpointed")
    for gpu in node.gpus:
        mine = [pid for pid in found if gpu.used(pid)]
        if gpu.mig and (mine or gpu.used_by is None):
            raise _failed(context, f"{_named(mine or found)} uses {gpu.uuid} in MIG mode, which cannot be checkpointed")


def _refuse_ipc(context: Context, node: Node, pids: list[int]) -> None:
    """Before driver 610 a process that has imported memory of another is checkpointed with success, and lost.

    The driver says of nobody whether it has (docs/gpu.md). But the users of CUDA IPC need a place for the handles and
    the counts of who uses them, and it is memory that both map: torch.multiprocessing's, vLLM's; and NCCL, which takes
    descriptors of memory from a socket, leaves that open.
    """
    if context.config.cuda.ipc == names.CUDA_IPC_DETECT:
        _refuse_nccl(context, node, pids)
    seen: dict[tuple[str, str], int] = {}
    for pid in pids:
        for key, path in shared.mapped(pid).items():
            first = seen.setdefault(key, pid)
            if first != pid and context.config.cuda.ipc == names.CUDA_IPC_DETECT:
                raise _failed(
                    context,
                    f"{_named([first, pid])} share memory ({path}), as users of CUDA IPC do, which driver "
                    f"{node.driver} checkpoints and cannot restore",
                    hint="where they use no CUDA IPC: `cuda.ipc: ignore`; with NCCL: NCCL_P2P_DISABLE=1 and "
                    "NCCL_SHM_DISABLE=1; or driver 610",
                )
    context.log.line(
        "warning",
        f"container {context.container}: it has {len(pids)} CUDA processes; if one imports memory of another by "
        f"CUDA IPC, driver {node.driver} checkpoints it and cannot restore it",
    )


def _refuse_nccl(context: Context, node: Node, pids: list[int]) -> None:
    joined = nccl.ranks(pids)
    if len(joined) > 1 and not all(nccl.is_apart(pid) for pid in joined):
        raise _failed(
            context,
            f"{_named(joined)} are ranks of NCCL and may have mapped each other's memory, which driver {node.driver} "
            "checkpoints and cannot restore",
            hint=f"start them with {' and '.join(nccl.APART)}, which costs the speed of NVLink; where they map none "
            "all the same: `cuda.ipc: ignore`; or driver 610",
        )


def _refuse_multi_gpu(context: Context, node: Node, pids: list[int]) -> None:
    """A process with memory on several GPUs may have mapped it from one to the other, and the driver takes some of
    these that it cannot restore: the process is lost then, the source, too (docs/gpu.md). Nothing tells them apart from
    outside: descriptors and mappings stay the same when peer access begins (looked at on driver 580).
    """
    for pid in pids:
        spread = node.used(pid) or {}
        if len(spread) > 1:
            raise _failed(
                context,
                f"{_named([pid])} has memory on {len(spread)} GPUs: what it has mapped between them driver "
                f"{node.driver} may take and not give back",
                hint="where a restore of it has been tried: `cuda.multi-gpu: allow`; with PyTorch: "
                "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True in the container, and then `allow`; or show the "
                "process one GPU by CUDA_VISIBLE_DEVICES",
            )


def _refuse_devices(context: Context, pids: list[int]) -> None:
    for pid in pids:
        devices = sorted({path for path in proc.open_paths(pid) if path.startswith(DEVICES)})
        if devices:
            raise _failed(
                context, f"{_named([pid])} has {', '.join(devices)} open without CUDA, which nobody can checkpoint"
            )


def _require_memory(context: Context, init: int, node: Node | None, pids: dict[int, int]) -> None:
    """Device memory goes into the processes' own memory, which counts for their cgroup."""
    needed = sum(sum((node.used(pid) or {}).values()) for pid in pids) if node else 0
    left = cgroups.memory_left(init)
    if left is not None and left[0] < needed:
        raise _failed(
            context,
            f"its {needed >> 20} MiB on the GPU do not fit into {left[1]}, which has {left[0] >> 20} MiB left: "
            f"{(needed - left[0] >> 20) + 1} MiB are missing",
            hint="raise the memory limit by the GPU memory in use" if left[1] != "the node" else "",
        )


def _section(
    api: cuda.Api, node: Node | None, threads: dict[int, int], initial: dict[int, State], granted: list[str]
) -> dict[str, Any]:
    listed = []
    for pid, thread in threads.items():
        used = node.used(pid) if node and initial[pid] is not State.CHECKPOINTED else None
        listed.append({
            "pid": proc.inner_pid(pid),
            "restoreThread": proc.inner_pid(thread),
            "state": initial[pid].name.lower(),
            "memory": used,
        })  # fmt: skip
    gpus = [
        {
            "index": gpu.index,
            "uuid": gpu.uuid,
            "name": gpu.name,
            "memory": gpu.memory,
            "visible": gpu.uuid in granted or not granted,  # nothing granted: nobody knows
        }
        for gpu in (node.gpus if node else ())
    ]
    return {"mode": api.name, "driver": node.driver if node else None, "gpus": gpus, "processes": listed}


def _hint(context: Context, err: ProcessError) -> str:
    if err.operation is Operation.LOCK and err.code == states.NOT_READY:
        return (
            f"its work on the GPU did not end within {context.config.cuda.lock_timeout:g} s: "
            "raise `cuda.lock-timeout`, or checkpoint at another time"
        )
    if err.operation is Operation.CHECKPOINT and err.code == states.NOT_SUPPORTED:
        return "this driver cannot checkpoint what it uses: managed memory (cudaMallocManaged), for one"
    return ""


def _failed(context: Context, why: str, *, hint: str = "") -> CaptureError:
    return CaptureError(f"cannot checkpoint container {context.container}: {why}", hint=hint)


def _named(pids: list[int]) -> str:
    return ", ".join(f"process {pid} ({' '.join(proc.command_line(pid))[:80]})" for pid in pids[:5])
