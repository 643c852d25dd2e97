"""A restored container's memory and CUDA, in the order that takes the least time."""

import contextlib

from grit_runtime.host.transaction import Transaction
from grit_runtime.workflow import cudarestore, memoryfill, staging
from grit_runtime.workflow.context import Context
from grit_runtime.workflow.memoryplan import Prepared as Memory


def bring_back(
    context: Context,
    memory: Memory,
    cuda: cudarestore.Prepared,
    transaction: Transaction,
    pid: int,
    pids: list[int],
    *,
    stopped: bool,
) -> None:
    """Fill what CRIU has left out, and have the driver bring CUDA back; see docs/gpu.md.

    Staging memory is mapped from the images; where it can't be, it is filled in huge pages, which the driver copies
    from faster.

    Args:
        pid: the container's first process.
        pids: all of them, stopped if `stopped`.

    Raises:
        GritError: some of it isn't as it was.
    """
    context.record.mark("memory")
    with contextlib.closing(staging.map_images(context, memory, pids, cuda.staging())) as mapped:
        _bring_back(context, memory, cuda, transaction, pid, pids, mapped, stopped=stopped)


def _bring_back(
    context: Context,
    memory: Memory,
    cuda: cudarestore.Prepared,
    transaction: Transaction,
    pid: int,
    pids: list[int],
    mapped: staging.Mapped,
    *,
    stopped: bool,
) -> None:
    huge = None if cuda.all_of_them(mapped.there) else cuda.huge_pages(context)
    if huge:
        transaction.do(huge)
    switched = context.record.begin("huge pages", huge.describe()) if huge else None
    if memory.parts:
        memoryfill.fill(context, memory, pids, in_huge_pages=cuda.in_huge_pages(), mapped=mapped.there)
    with staging.compared(context, memory, pids, mapped) as settle:
        context.record.mark("cuda")
        now = context.downstream.processes(context.container, timeout=context.config.timeouts.command)
        cudarestore.repair_devices(pid, cuda.plan.devices)
        cudarestore.bring_back(context, cuda, now, stopped=stopped)
        settle()
    if huge and switched:
        transaction.undo(huge)
        context.record.end(switched)
