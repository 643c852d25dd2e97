"""A frozen container's memory, written past CRIU (docs/memory.md)."""

import os
import time

from grit_runtime import names
from grit_runtime.criu import pagemap as pagemaps
from grit_runtime.criu.memory import save
from grit_runtime.errors import CaptureError
from grit_runtime.host import files, pool, proc, shared
from grit_runtime.workflow.context import Context
from grit_runtime.workflow.dump import Request

_NOWHERE = "/dev/null"
_SHARED = "shmem-"


class UnreachableError(CaptureError):
    """Shared memory that only CRIU can read."""


def begin(context: Context, request: Request, partial: str, pids: list[int], *, frozen: bool) -> bool:
    """Give CRIU links to /dev/null for the pages images that it is about to write.

    CRIU numbers pages images as it opens them (criu/image.c, open_pages_image_at), one for each process and each piece
    of shared memory, and follows a link; what it splices into /dev/null is dropped without a copy. A pages image beyond
    these it writes itself.

    Args:
        pids: what is in the container's cgroup.
        frozen: the container stays frozen from before the dump until afterwards.

    Returns:
        Whether `finish` has something to do.

    Raises:
        CaptureError: it can't be done, and the configuration says that it must.
    """
    why = _why_not(context, request, frozen=frozen)
    if why:
        if context.config.memory.transport == names.MEMORY_PARALLEL:
            raise CaptureError(
                f"cannot dump container {context.container} by `memory.transport: parallel`: {why}",
                hint="`auto` takes CRIU's own way then",
            )
        context.log.line("info", f"container {context.container}: CRIU writes the memory: {why}")
        return False
    inodes = {inode for pid in pids for inode in shared.inodes(pid)}
    for number in range(1, len(pids) + len(inodes) + 1):
        os.symlink(_NOWHERE, os.path.join(partial, _pages(number)))
    return True


def finish(context: Context, partial: str, pids: list[int]) -> dict[str, list[str]]:
    """Write the pages images that CRIU has not.

    Returns:
        The checksums of their chunks, by name.

    Raises:
        UnreachableError: CRIU must be asked again, without `begin`.
        CaptureError: memory couldn't be read, or an image not be written.
    """
    begun = time.monotonic()
    opened: list[int] = []
    try:
        images = _images(context, partial, pids, opened)
        for name in os.listdir(partial):
            if name.startswith("pages-") and os.path.islink(os.path.join(partial, name)):
                os.unlink(os.path.join(partial, name))
        workers = pool.workers(context.config.memory.workers)
        direct = context.config.memory.direct_io == names.DIRECT_AUTO
        checksums = save.save(images, workers, direct=direct, timeout=context.config.timeouts.checkpoint)
    except OSError as err:
        where = f" {err.filename}" if err.filename else ""
        raise CaptureError(
            f"cannot write the memory of container {context.container} to {partial}{where}: {err.strerror or err}"
        ) from None
    finally:
        for fd in opened:
            os.close(fd)
    size = sum(image.pagemap.size for image in images)
    context.record.add(size)
    context.log.line(
        "info", f"container {context.container}: {size >> 20} MiB of memory written in {time.monotonic() - begun:.2f} s"
    )
    return checksums


def _why_not(context: Context, request: Request, *, frozen: bool) -> str:
    """What it lacks; empty if nothing."""
    if context.config.memory.transport == names.MEMORY_CRIU:
        return "`memory.transport` says so"
    if not frozen:
        return "CRIU's CUDA plugin needs the container running until CRIU begins"
    if request.parent:
        return "it is a dump on top of another one"
    if os.sysconf("SC_PAGE_SIZE") != pagemaps.PAGE:
        return f"pages are {os.sysconf('SC_PAGE_SIZE')} bytes large here"
    return ""


def _pages(number: int) -> str:
    return f"pages-{number}.img"


def _images(context: Context, partial: str, pids: list[int], opened: list[int]) -> list[save.Image]:
    """What is to be written; descriptors that must be closed afterwards go into `opened`."""
    inner = {proc.inner_pid(pid): pid for pid in pids}
    found = []
    for name in sorted(os.listdir(partial)):
        if not name.startswith("pagemap-") or not name.endswith(".img"):
            continue
        with open(os.path.join(partial, name), "rb") as stream:
            pagemap = pagemaps.decode(stream.read(pagemaps.MAX_BYTES), name)
        path = os.path.join(partial, _pages(pagemap.pages_id))
        if not os.path.islink(path):
            continue
        which = name.removeprefix("pagemap-").removesuffix(".img")
        memory: save.Memory
        if which.startswith(_SHARED):
            opened.append(_open_shared(context, int(which.removeprefix(_SHARED)), pids))
            memory = save.OfFile(opened[-1])
        elif int(which) in inner:
            memory = save.OfProcess(inner[int(which)])
        else:
            raise CaptureError(
                f"cannot write the memory of container {context.container}: CRIU dumped process {which}, which is not "
                "in its cgroup",
                hint="move it there, or set `memory.transport: criu`",
            )
        found.append(save.Image(path=path, pagemap=pagemap, memory=memory))
    return found


def _open_shared(context: Context, inode: int, pids: list[int]) -> int:
    """A file in memory that the processes have open or mapped, by the 32 bits of its inode that CRIU keeps."""
    for pid in pids:
        for folder in ("fd", "map_files"):
            path = shared.find_file(pid, folder, inode)
            if path:
                return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    raise UnreachableError(f"shared memory {inode} of container {context.container} is open in none of its processes")


def start_over(context: Context, partial: str, why: str) -> None:
    """Remove what CRIU has written, for it to begin anew and write all of it."""
    context.log.line("info", f"container {context.container}: CRIU writes the memory: {why}")
    for name in os.listdir(partial):
        files.remove(os.path.join(partial, name))
