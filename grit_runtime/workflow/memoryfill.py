"""A restored container's memory, filled past CRIU while its processes are stopped (docs/memory.md)."""

import os
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from grit_runtime.criu.memory import fill as filling
from grit_runtime.criu.memory.split import Split, outside
from grit_runtime.criu.pagemap import Run
from grit_runtime.errors import RestoreError
from grit_runtime.host import inject, pool, proc
from grit_runtime.host.vm import Userfault
from grit_runtime.workflow.context import Context
from grit_runtime.workflow.memoryplan import Prepared, pages_name


@dataclass(frozen=True, slots=True, kw_only=True)
class There:
    """Memory of a process that needs no filling, for it is mapped from the pages image."""

    runs: tuple[Run, ...] = ()
    fd: int = -1
    """The image: this very file is what is compared, whatever its name leads to by then."""


def fill(
    context: Context,
    prepared: Prepared,
    pids: Sequence[int],
    *,
    in_huge_pages: Collection[int] = (),
    mapped: Mapping[int, There] = MappingProxyType({}),
) -> None:
    """Fill what CRIU has left out.

    Args:
        pids: the container's processes, all stopped.
        in_huge_pages: pids within the container of processes whose memory is to be in huge pages, which UFFDIO_COPY
            makes none of.
        mapped: by pid, what needs no filling.

    Raises:
        CheckpointError: an image isn't what it was.
        RestoreError: memory couldn't be filled.
    """
    begun = time.monotonic()
    inner = {proc.inner_pid(pid): pid for pid in pids}
    ways: dict[int, Userfault | None] = {}
    try:
        for number, (_, split) in prepared.parts.items():
            if number not in inner:
                raise RestoreError(f"cannot restore container {context.container}: its process {number} is gone")
            pid = inner[number]
            fast = number not in in_huge_pages and pid not in mapped  # what is mapped there can't be registered
            ways[number] = _userfault(context, pid, split) if fast else None
        workers = pool.workers(context.config.memory.workers)
        found = images(context, prepared, pids, ways, mapped)
        size = filling.fill(found, workers, timeout=context.config.timeouts.restore)
    except OSError as err:
        raise RestoreError(f"cannot fill the memory of container {context.container}: {err}") from None
    finally:
        for number, userfault in ways.items():
            if userfault is not None:
                _let_go(userfault, prepared.parts[number][1])
    way = "userfaultfd" if all(ways.values()) else "process_vm_writev"
    took = time.monotonic() - begun
    context.record.add(size)
    context.log.line(
        "info", f"container {context.container}: {size >> 20} MiB of memory filled in {took:.2f} s by {way}"
    )


def images(
    context: Context,
    prepared: Prepared,
    pids: Sequence[int],
    ways: Mapping[int, Userfault | None],
    mapped: Mapping[int, There],
) -> list[filling.Image]:
    """The pages images, with what of them goes where.

    Args:
        ways: the userfaultfd of a process, by its pid within the container.
        mapped: by pid, what is there already.
    """
    inner, found = {proc.inner_pid(pid): pid for pid in pids}, []
    for number, (pagemap, split) in prepared.parts.items():
        if number not in inner:
            raise RestoreError(f"cannot restore container {context.container}: its process {number} is gone")
        pid, userfault, name = inner[number], ways.get(number), pages_name(pagemap)
        memory = filling.ByWriting(pid) if userfault is None else filling.ByUserfault(pid, userfault)
        there = mapped.get(pid, There())
        missing = outside(split.runs, [(run.address, run.end) for run in there.runs])
        runs: list[tuple[Run, filling.Memory]] = [(run, memory) for run in missing]
        runs += [(run, filling.ByMapping(pid)) for run in there.runs]
        found.append(
            filling.Image(
                path=os.path.join(prepared.path, name),
                size=pagemap.size,
                runs=tuple(sorted(runs, key=lambda each: each[0].offset)),
                checksums=prepared.checksums.get(name),
                fd=there.fd,
            )
        )
    return found


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
            raise not_stopped(context, pid, err) from None
        return None
    return userfault


def not_stopped(context: Context, pid: int, err: OSError) -> RestoreError:
    """What is said of a process that didn't come out of a system call of ours as it went in."""
    return RestoreError(
        f"cannot restore container {context.container}: its process {pid} is not stopped any more: {err}"
    )


def _let_go(userfault: Userfault, split: Split) -> None:
    for start, end in split.ranges:
        try:
            userfault.unregister(start, end - start)
        except OSError:
            continue  # the process is gone; closing does the rest
    userfault.close()
