"""Which memory of a restored container is filled past CRIU (docs/memory.md)."""

import os
from dataclasses import dataclass, field

from grit_runtime import names
from grit_runtime.checkpoint import integrity
from grit_runtime.checkpoint.manifest import Manifest
from grit_runtime.criu import mappings
from grit_runtime.criu import pagemap as pagemaps
from grit_runtime.criu.images import ImageProcess, Images
from grit_runtime.criu.memory import split as splitting
from grit_runtime.criu.memory.split import Split, Vma
from grit_runtime.criu.pagemap import Pagemap
from grit_runtime.errors import CheckpointError, RestoreError
from grit_runtime.host import pool
from grit_runtime.workflow.context import Context


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What is filled past CRIU."""

    path: str
    parts: dict[int, tuple[Pagemap, Split]] = field(default_factory=dict)
    """By the process' pid within the container."""
    checksums: dict[str, tuple[str, ...]] = field(default_factory=dict)
    why: str = ""
    """Why CRIU reads all of it; empty if that is not so."""

    @property
    def staged(self) -> dict[str, bytes]:
        """The pagemaps that CRIU is shown."""
        return {_pagemap(pid): split.pagemap for pid, (_, split) in self.parts.items()}


def prepare(
    context: Context, decoded: Images, manifest: Manifest | None, *, stopped: bool, compare: bool = True
) -> Prepared:
    """Decide what goes past CRIU, and compare what does not with its checksums.

    Args:
        stopped: CRIU leaves the processes stopped.
        compare: compare them; that reads them.

    Raises:
        CheckpointError: an image is damaged.
        RestoreError: it can't be done, and the configuration says that it must.
    """
    path, config = decoded.path, context.config.memory
    checksums = integrity.recorded(manifest.data, os.path.join(path, names.MANIFEST)) if manifest else {}
    why = _why_not(context, decoded, stopped=stopped)
    if why and config.transport == names.MEMORY_PARALLEL:
        raise RestoreError(
            f"cannot restore container {context.container} by `memory.transport: parallel`: {why}",
            hint="`auto` takes CRIU's own way then",
        )
    found = _pagemaps(decoded)
    parts = {} if why else _parts(decoded, found)
    if why:
        context.log.line("info", f"container {context.container}: CRIU reads the memory: {why}")
    later = {pages_name(pagemap) for pagemap, _ in parts.values()}
    if compare:
        sooner = [name for name in checksums if name not in later]
        integrity.require(path, sooner, checksums, pool.workers(config.workers))
    return Prepared(path=path, parts=parts, checksums=checksums, why=why)


def _why_not(context: Context, decoded: Images, *, stopped: bool) -> str:
    """What it lacks; empty if nothing."""
    if context.config.memory.transport == names.MEMORY_CRIU:
        return "`memory.transport` says so"
    if not stopped:
        return "the processes run as soon as CRIU has restored them (--shell-job)"
    if names.PARENT_LINK in decoded.files:
        return "it is a dump on top of another one"
    if os.sysconf("SC_PAGE_SIZE") != pagemaps.PAGE:
        return f"pages are {os.sysconf('SC_PAGE_SIZE')} bytes large here"
    return ""


def _pagemaps(decoded: Images) -> dict[str, Pagemap]:
    """All of them, by name; a pages image that is too short is found: CRIU reads on at its end for ever
    (criu/pagemap.c, process_async_reads).
    """
    found = {}
    for name in decoded.files:
        if name.startswith("pagemap-") and name.endswith(".img"):
            found[name] = _read(decoded.path, name)
            _require_whole(os.path.join(decoded.path, pages_name(found[name])), found[name].size)
    return found


def _require_whole(image: str, needed: int) -> None:
    try:
        size = os.stat(image).st_size
    except OSError as err:
        raise CheckpointError(f"cannot read image {image}: {err.strerror}") from None
    if size < needed:
        raise CheckpointError(
            f"image {image} is shorter than its pagemap says: {size} bytes instead of {needed}", hint="copy it again"
        )


def _parts(decoded: Images, found: dict[str, Pagemap]) -> dict[int, tuple[Pagemap, Split]]:
    alive = [process for process in decoded.processes if not process.zombie and _pagemap(process.pid) in found]
    large = {process.pid: found[_pagemap(process.pid)] for process in alive}
    large = {pid: pagemap for pid, pagemap in large.items() if pagemap.size >= splitting.SMALLEST}
    made, all_vmas = {}, dict[int, list[Vma]]()

    def vmas(pid: int) -> list[Vma]:
        if pid not in all_vmas:
            listed = mappings.mappings(decoded.path, pid)
            all_vmas[pid] = [Vma(v.start, v.end, v.prot, v.flags, v.status) for v in listed]
        return all_vmas[pid]

    for pid, pagemap in large.items():
        shared = {(vma.start, vma.end) for relative in _relatives(alive, pid) for vma in vmas(relative)}
        split = splitting.split(vmas(pid), pagemap, frozenset(shared))
        if split is not None:
            made[pid] = (pagemap, split)
    return made


def _relatives(processes: list[ImageProcess], pid: int) -> list[int]:
    """Its parent and its children."""
    (parent,) = [process.ppid for process in processes if process.pid == pid]
    return [process.pid for process in processes if process.pid == parent or process.ppid == pid]


def _read(path: str, name: str) -> Pagemap:
    file = os.path.join(path, name)
    try:
        with open(file, "rb") as stream:
            data = stream.read(pagemaps.MAX_BYTES + 1)
    except OSError as err:
        raise CheckpointError(f"cannot read image {file}: {err.strerror}") from None
    if len(data) > pagemaps.MAX_BYTES:
        raise CheckpointError(f"image {file} is larger than {pagemaps.MAX_BYTES >> 20} MiB")
    return pagemaps.decode(data, file)


def _pagemap(pid: int) -> str:
    return f"pagemap-{pid}.img"


def pages_name(pagemap: Pagemap) -> str:
    """The image with the pages that a pagemap describes."""
    return f"pages-{pagemap.pages_id}.img"
