"""The processes of a checkpoint and their memory, from the small images: pagemaps say how much, pages aren't read."""

import bisect
from collections.abc import Mapping as MappingOf
from dataclasses import dataclass, field
from typing import Any

from grit_runtime.criu import images, pagemap
from grit_runtime.criu.pagemap import Run
from grit_runtime.criu.raw import word
from grit_runtime.inspection.model import Mapping, Process
from grit_runtime.inspection.reader import Reader

# compel/include/uapi/task-state.h
_STATES = {1: "", 2: "zombie", 3: "stopped", 6: "zombie"}
_DEAD = 2
_LARGEST_COMPARED = 4 << 20  # bytes of a pagemap that is read though nobody asked for mappings
# criu/include/image.h, VMA_AREA_*
_KINDS = (
    (1 << 1, "[stack]"), (1 << 2, "[vsyscall]"), (1 << 3, "[vdso]"), (1 << 5, "[heap]"), (1 << 12, "[vvar]"),
    (1 << 10, "[System V shared memory]"), (1 << 14, "[memfd]"), (1 << 8, "[shared memory]"),
    (1 << 11, "[socket]"), (1 << 13, "[aio]"),
)  # fmt: skip
_OF_FILES = 1 << 6 | 1 << 7
_MAP_SHARED, _MAP_GROWSDOWN = 0x01, 0x100  # <asm-generic/mman.h>


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What others than the images say of the processes."""

    commands: MappingOf[int, str] = field(default_factory=dict)
    gpu: MappingOf[int, dict[str, int] | None] = field(default_factory=dict)
    """Of each CUDA process its bytes by GPU; None if nobody could say."""
    paths: MappingOf[int, str] = field(default_factory=dict)
    """Of each file of the images its path."""
    listed: bool = False
    """A manifest lists all files with their sizes, so that these need no comparing."""


def read(reader: Reader, known: Known, *, mappings: bool) -> tuple[Process, ...]:
    """Every process.

    Args:
        mappings: list the mappings of each.
    """
    entries = reader.messages("pstree.img", "PSTREE")
    if not entries and "pstree.img" in reader.store.sizes and not reader.problems:
        reader.note("image pstree.img holds no process")
    if len(entries) > images.MAX_PROCESSES:
        reader.note(f"image pstree.img holds {len(entries)} processes")
        return ()
    return tuple(_process(reader, known, entry, mappings) for entry in entries)


def shared_memory(reader: Reader) -> int:
    """The bytes of the pages images that belong to shared memory."""
    total = 0
    for name in reader.store.sizes:
        if name.startswith("pagemap-shmem-"):
            total += reader.store.sizes.get(_pages(reader, name) or "", 0)
    return total


def _process(reader: Reader, known: Known, entry: Any, mappings: bool) -> Process:
    core = reader.first(f"core-{entry.pid}.img", "CORE")
    dead = core is not None and core.tc.task_state == _DEAD
    mm = None if dead else reader.first(f"mm-{entry.pid}.img", "MM")
    pages = None if dead else _pages(reader, f"pagemap-{entry.pid}.img")
    if not dead and not known.listed:
        for name in (f"core-{entry.pid}.img", f"mm-{entry.pid}.img", f"pagemap-{entry.pid}.img"):
            if name not in reader.store.sizes:
                reader.note(f"{name} of process {entry.pid} is missing")
    runs = _runs(reader, known, entry.pid, pages, mappings=mappings) if pages else []
    name = reader.attempt(f"image core-{entry.pid}.img", lambda: word(core.tc.comm) if core is not None else "", "")
    return Process(
        pid=entry.pid,
        parent=entry.ppid,
        name=name,
        command=known.commands.get(entry.pid, ""),
        program=known.paths.get(mm.exe_file_id, "") if mm is not None else "",
        threads=len(entry.threads),
        state=_STATES.get(core.tc.task_state, "") if core is not None else "",
        saved=reader.store.sizes.get(pages) if pages else None,
        mapped=sum(max(vma.end - vma.start, 0) for vma in mm.vmas) if mm is not None else None,
        gpu=known.gpu.get(entry.pid),
        cuda=entry.pid in known.gpu,
        mappings=tuple(_mapping(vma, runs, known.paths) for vma in mm.vmas) if mappings and mm is not None else (),
    )


def _pages(reader: Reader, name: str) -> str | None:
    """The pages image of a pagemap."""
    if name not in reader.store.sizes:
        return None
    found = reader.attempt(name, lambda: pagemap.pages_id(reader.store.read(name), name), -1)
    return f"pages-{found}.img" if found >= 0 else None


def _runs(reader: Reader, known: Known, pid: int, pages: str, *, mappings: bool) -> list[Run]:
    """What stands in the pages image, which is compared with its size."""
    name = f"pagemap-{pid}.img"
    if not mappings and (known.listed or reader.store.sizes[name] > _LARGEST_COMPARED):
        return []
    found = reader.attempt(name, lambda: pagemap.decode(reader.store.read(name), name), None)
    if found is None:
        return []
    there = reader.store.sizes.get(pages)
    if not known.listed and found.size and there is None:
        reader.note(f"{pages} of process {pid} is missing")
    elif not known.listed and (there or 0) < found.size:
        reader.note(f"{pages} has {there} bytes, and {name} says {found.size}")
    return found.runs()


def _mapping(vma: Any, runs: list[Run], paths: MappingOf[int, str]) -> Mapping:
    access = "".join(letter if vma.prot & bit else "-" for bit, letter in ((1, "r"), (2, "w"), (4, "x")))
    what = next((name for bit, name in _KINDS if vma.status & bit), "[stack]" if vma.flags & _MAP_GROWSDOWN else "")
    return Mapping(
        start=vma.start,
        end=vma.end,
        access=access + ("s" if vma.flags & _MAP_SHARED else "p"),
        what=paths.get(vma.shmid, f"file {vma.shmid}") if vma.status & _OF_FILES else what,
        saved=_overlap(runs, vma.start, vma.end),
    )


def _overlap(runs: list[Run], start: int, end: int) -> int:
    total = 0
    number = bisect.bisect_right(runs, start, key=lambda run: run.end)
    while number < len(runs) and runs[number].address < end:
        total += min(runs[number].end, end) - max(runs[number].address, start)
        number += 1
    return total
