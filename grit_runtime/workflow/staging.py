"""The CUDA driver's staging memory, through which device memory goes (docs/gpu.md).

At a checkpoint the driver takes it at once, and it is made by all workers (host/follow.py). At a restore the driver
only reads it, in user mode, and gives it back: so it is mapped from the pages image instead of being filled, and the
driver begins at once. The image is compared meanwhile, and nothing of the container runs before that is done and
nothing of the image is left in it.
"""

import contextlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from grit_runtime import names
from grit_runtime.criu.memory import fill as filling
from grit_runtime.criu.memory import split as splitting
from grit_runtime.criu.pagemap import Run
from grit_runtime.errors import RestoreError
from grit_runtime.host import follow, inject, pool, proc, remap
from grit_runtime.workflow import memoryfill
from grit_runtime.workflow.context import Context
from grit_runtime.workflow.memoryplan import Prepared, pages_name

Ranges = Sequence[tuple[int, int]]
_SMALLEST = 16 << 20  # bytes
_MOST_PIECES = 64
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


class Mapped:
    """What is mapped: by host pid, which runs of the images, and where to look for them. To be closed."""

    def __init__(self) -> None:
        self.there: dict[int, memoryfill.There] = {}
        self.files: dict[int, remap.Mapped] = {}

    def close(self) -> None:
        """Close the images."""
        for there in self.there.values():
            os.close(there.fd)


@contextlib.contextmanager
def seen(context: Context, threads: Mapping[int, int], section: dict[str, Any]) -> Iterator[None]:
    """See what staging memory the driver takes in this block, and make it faster than the kernel does.

    Args:
        threads: the processes, each with the driver's thread in it.
        section: the manifest's, in which it is noted.
    """
    if context.config.cuda.staging == names.STAGING_NEVER or not follow.is_supported():
        yield
        return
    with follow.followed(list(threads.items()), pool.workers(context.config.memory.workers)) as taken:
        yield
    if taken.problem:
        context.log.line("info", f"container {context.container}: the driver was not followed: {taken.problem}")
    inner = {proc.inner_pid(pid): ranges[:_MOST_PIECES] for pid, ranges in taken.ranges.items()}
    for entry in section["processes"]:
        if entry["pid"] in inner:
            entry["staging"] = [list(each) for each in inner[entry["pid"]]]


def map_images(context: Context, prepared: Prepared, pids: Sequence[int], staging: Mapping[int, Ranges]) -> Mapped:
    """Map it, wherever that can be done; what can't be mapped is filled as other memory is.

    Args:
        pids: the container's processes, all stopped.
        staging: start and end of it, by the pid within the container.
    """
    made, inner = Mapped(), {proc.inner_pid(pid): pid for pid in pids}
    if context.config.cuda.staging == names.STAGING_NEVER or context.config.trust.require_signature:
        return made  # only a copy of what was verified is what was verified, whoever else may write the image
    if not inject.is_supported():
        return made
    for number, ranges in staging.items():
        if number not in prepared.parts or number not in inner:
            continue
        pagemap, split = prepared.parts[number]
        runs = tuple(run for _, run in splitting.intersection(split.runs, sorted(ranges)))
        if not 0 < len(runs) <= _MOST_PIECES or sum(run.size for run in runs) < _SMALLEST:
            continue
        pid = inner[number]
        try:
            fd, made.files[pid] = _map(pid, os.path.join(prepared.path, pages_name(pagemap)), runs)
            made.there[pid] = memoryfill.There(runs=runs, fd=fd)
        except OSError as err:
            context.log.line(
                "info", f"container {context.container}: staging memory of process {pid} is filled, not mapped: {err}"
            )
            if proc.state(pid) != "T":
                made.close()
                raise memoryfill.not_stopped(context, pid, err) from None
    return made


def _map(pid: int, path: str, runs: Sequence[Run]) -> tuple[int, remap.Mapped]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if found.st_uid or found.st_mode & _OTHERS_WRITE:
            raise PermissionError(f"others than root may write {path}")
        return fd, remap.map_file(pid, fd, [remap.Piece(run.address, run.size, run.offset) for run in runs])
    except BaseException:
        os.close(fd)
        raise


@contextlib.contextmanager
def compared(context: Context, prepared: Prepared, pids: Sequence[int], mapped: Mapped) -> Iterator[Callable[[], None]]:
    """Compare the images that are mapped, by other processes, while the driver reads them.

    Yields:
        Waits for that, and has nothing left of the images in the processes, which are stopped then. It raises
        CheckpointError if an image isn't what it was, and RestoreError if that can't be said.
    """
    if not mapped.files:
        yield lambda: None
        return
    images = memoryfill.images(context, prepared, pids, {}, mapped.there)
    workers, timeout = pool.workers(context.config.memory.workers), context.config.timeouts.restore
    span = context.record.begin("images compared")

    def compare() -> int:
        return filling.compare(images, workers, timeout=timeout)

    with pool.aside(compare, timeout=timeout) as result:
        done = False

        def check() -> None:
            nonlocal done
            if done:
                return
            done = True
            context.record.end(span, (result or compare)())
            size = sum(run.size for there in mapped.there.values() for run in there.runs)
            context.log.line(
                "info",
                f"container {context.container}: {size >> 20} MiB of staging memory were mapped from the images",
            )

        def settle() -> None:
            try:
                check()
                for each in mapped.files.values():
                    _make_own(context, each)
            except OSError as err:
                raise RestoreError(f"cannot fill the memory of container {context.container}: {err}") from None

        try:
            yield settle
        except RestoreError:
            with contextlib.suppress(OSError):
                check()  # an image that is damaged explains it
            raise


def _make_own(context: Context, mapped: remap.Mapped) -> None:
    size = remap.make_own(mapped)
    if size:
        context.log.line(
            "info",
            f"container {context.container}: the driver kept {size >> 20} MiB of staging memory of process "
            f"{mapped.pid}, which was copied",
        )
