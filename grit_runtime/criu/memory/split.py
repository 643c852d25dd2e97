"""Which memory is filled past CRIU, and what CRIU is shown instead. Pure.

Past CRIU goes private anonymous memory: nothing that CRIU puts together from files, and nothing that a process shares
with its parent until one of them writes (CRIU restores such mappings once, for both; criu/mem.c, prepare_cow_vmas). So
all memory that is shared stays so, and what is left to CRIU is small in all but programs that fork without exec.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from grit_runtime.criu import pagemap as pagemaps
from grit_runtime.criu.pagemap import PAGE, Fields, Pagemap, Run

SMALLEST = 1 << 20  # bytes that stand in the images of one mapping; less isn't worth our while

# <asm-generic/mman.h>
_MAP_PRIVATE, _MAP_ANONYMOUS, _MAP_GROWSDOWN, _MAP_LOCKED, _MAP_HUGETLB = 0x02, 0x20, 0x0100, 0x2000, 0x40000
_WANTED = _MAP_PRIVATE | _MAP_ANONYMOUS
_UNWANTED = _MAP_GROWSDOWN | _MAP_LOCKED | _MAP_HUGETLB
# criu/include/image.h
_REGULAR, _ANON_PRIVATE = 1 << 0, 1 << 9
_SPECIAL = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 14 | 1 << 15 | 1 << 27
_WRITE = 2  # PROT_WRITE


@dataclass(frozen=True, slots=True)
class Vma:
    """A mapping of mm-N.img (images/vma.proto)."""

    start: int
    end: int
    prot: int
    flags: int
    status: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """One process' memory."""

    ranges: tuple[tuple[int, int], ...]
    """The mappings that are filled past CRIU, as start and end."""
    runs: tuple[Run, ...]
    """What of the pages image goes into them."""
    pagemap: bytes
    """What CRIU is shown: all else, as if it stood in the images of an earlier dump, which are the checkpoint's."""


def split(vmas: Sequence[Vma], pagemap: Pagemap, shared: frozenset[tuple[int, int]]) -> Split | None:
    """Decide; None if there is nothing that is worth it.

    Args:
        shared: start and end of the mappings of its parent and its children.
    """
    if pagemap.has_parent:
        return None
    runs = pagemap.runs()
    fitting = [(vma.start, vma.end) for vma in vmas if _fits(vma) and (vma.start, vma.end) not in shared]
    parts = intersection(runs, fitting)
    sizes: dict[tuple[int, int], int] = {}
    for within, run in parts:
        sizes[within] = sizes.get(within, 0) + run.size
    ranges = tuple(within for within in fitting if sizes.get(within, 0) >= SMALLEST)
    if not ranges:
        return None
    chosen = frozenset(ranges)
    kept = _without(pagemap.entries, ranges)
    return Split(
        ranges=ranges,
        runs=tuple(run for within, run in parts if within in chosen),
        pagemap=pagemaps.encode(pagemap.pages_id, kept),
    )


def _fits(vma: Vma) -> bool:
    return (
        vma.flags & _WANTED == _WANTED
        and not vma.flags & _UNWANTED
        and vma.status & (_REGULAR | _ANON_PRIVATE) == _REGULAR | _ANON_PRIVATE
        and not vma.status & _SPECIAL
        and bool(vma.prot & _WRITE)
    )


def intersection(runs: Sequence[Run], ranges: Sequence[tuple[int, int]]) -> list[tuple[tuple[int, int], Run]]:
    """The runs' parts that lie within ranges, each with its range; runs and ranges in the order of their addresses."""
    found, number = [], 0
    for run in runs:
        while number < len(ranges) and ranges[number][1] <= run.address:
            number += 1
        at = number
        while at < len(ranges) and ranges[at][0] < run.end:
            first, last = max(run.address, ranges[at][0]), min(run.end, ranges[at][1])
            found.append((ranges[at], Run(first, run.offset + first - run.address, last - first)))
            at += 1
    return found


def outside(runs: Sequence[Run], ranges: Sequence[tuple[int, int]]) -> tuple[Run, ...]:
    """The runs' parts that lie within no range; both in the order of their addresses."""
    edges = [0, *(edge for each in ranges for edge in each), 1 << 64]
    return tuple(run for _, run in intersection(runs, list(zip(edges[::2], edges[1::2], strict=True))))


def _without(entries: Iterable[Fields], ranges: Sequence[tuple[int, int]]) -> list[Fields]:
    """What of the entries lies outside of the ranges, in_parent."""
    found, number = [], 0
    for entry in entries:
        begin = pagemaps.address(entry)
        end = begin + pagemaps.pages(entry) * PAGE
        while number < len(ranges) and ranges[number][1] <= begin:
            number += 1
        at = number
        while begin < end:
            start, stop = ranges[at] if at < len(ranges) else (end, end)
            if begin < start:
                found.append(pagemaps.part(entry, begin, min(end, start)))
            begin, at = max(begin, min(end, stop)), at + 1
    return found
