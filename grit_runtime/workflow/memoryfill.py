"""A restored container's memory, filled past CRIU while its processes are stopped (docs/memory.md)."""

import os
import time
from collections.abc import Collection

from grit_runtime.criu.memory import fill as filling
from grit_runtime.criu.memory.split import Split
from grit_runtime.criu.pagemap import Pagemap
from grit_runtime.errors import RestoreError
from grit_runtime.host import inject, pool, proc
from grit_runtime.host.vm import Userfault
from grit_runtime.workflow.context import Context
from grit_runtime.workflow.memoryplan import Prepared, pages_name


def fill(context: Context, prepared: Prepared, pids: list[int], *, in_huge_pages: Collection[int] = ()) -> None:
    """Fill what CRIU has left out.

    Args:
        pids: the container's processes, all stopped.
        in_huge_pages: pids within the container of processes whose memory is to be in huge pages, which UFFDIO_COPY
            makes none of.

    Raises:
        CheckpointError: an image isn't what it was.
        RestoreError: memory couldn't be filled.
    """
    begun = time.monotonic()
    inner = {proc.inner_pid(pid): pid for pid in pids}
    ways: list[tuple[Split, Userfault | None]] = []
    try:
        found = []
        for pid, (pagemap, split) in prepared.parts.items():
            if pid not in inner:
                raise RestoreError(f"cannot restore container {context.container}: its process {pid} is gone")
            userfault = None if pid in in_huge_pages else _userfault(context, inner[pid], split)
            ways.append((split, userfault))
            found.append(_image(prepared, inner[pid], pagemap, split, userfault))
        workers = pool.workers(context.config.memory.workers)
        size = filling.fill(found, workers, timeout=context.config.timeouts.restore)
    except OSError as err:
        raise RestoreError(f"cannot fill the memory of container {context.container}: {err}") from None
    finally:
        for split, userfault in ways:
            if userfault is not None:
                _let_go(userfault, split)
    way = "userfaultfd" if all(userfault for _, userfault in ways) else "process_vm_writev"
    took = time.monotonic() - begun
    context.record.add(size)
    context.log.line(
        "info", f"container {context.container}: {size >> 20} MiB of memory filled in {took:.2f} s by {way}"
    )


def _userfault(context: Context, pid: int, split: Split) -> Userfault | None:
    """The fast way into a process; None where the kernel or a policy says no."""
    if not inject.is_supported():
        return None
    userfault = None
    try:
        userfault = Userfault(inject.userfaultfd(pid))
        for start, end in split.ranges:
            userfault.register(start, end - start)
    except OSError as err:
        context.log.line("info", f"container {context.container}: no userfaultfd of process {pid}: {err}")
        if userfault is not None:
            userfault.close()
        if proc.state(pid) != "T":  # it isn't as it was before, and could end with us
            raise RestoreError(
                f"cannot restore container {context.container}: its process {pid} is not stopped any more: {err}"
            ) from None
        return None
    return userfault


def _let_go(userfault: Userfault, split: Split) -> None:
    for start, end in split.ranges:
        try:
            userfault.unregister(start, end - start)
        except OSError:
            continue  # the process is gone; closing does the rest
    userfault.close()


def _image(prepared: Prepared, pid: int, pagemap: Pagemap, split: Split, userfault: Userfault | None) -> filling.Image:
    memory: filling.Memory = filling.ByWriting(pid) if userfault is None else filling.ByUserfault(pid, userfault)
    name = pages_name(pagemap)
    return filling.Image(
        path=os.path.join(prepared.path, name),
        size=pagemap.size,
        runs=tuple((run, memory) for run in split.runs),
        checksums=prepared.checksums.get(name),
    )
