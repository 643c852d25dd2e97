"""Pagemaps as CRIU writes them, and how they are split between CRIU and us."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grit_runtime.criu import pagemap as pagemaps
from grit_runtime.criu.memory.split import SMALLEST, Vma, intersection, outside, split
from grit_runtime.criu.pagemap import PAGE, PARENT, PRESENT, Fields, Pagemap, Run
from grit_runtime.errors import CheckpointError

ANON = {"prot": 3, "flags": 0x22, "status": 1 | 1 << 9}
BASE = 0x7F00_0000_0000


@st.composite
def entries(draw: st.DrawFn) -> tuple[Fields, ...]:
    """Entries in order, of old and new kinds."""
    found, at = [], BASE
    for gap, count, new in draw(
        st.lists(st.tuples(st.sampled_from([0, 1, 7, 300]), st.integers(1, 700), st.booleans()), max_size=30)
    ):
        at += gap * PAGE
        found.append({1: at, 2: 0, 4: PRESENT | 2, 5: count} if new else {1: at, 2: count, 4: PRESENT})
        at += count * PAGE
    return tuple(found)


@st.composite
def mappings(draw: st.DrawFn) -> list[Vma]:
    """Mappings in order, of which some are ours to fill."""
    found, at = [], BASE
    for gap, count, kind in draw(
        st.lists(
            st.tuples(st.sampled_from([0, 5, 100]), st.integers(1, 1500), st.sampled_from(["anon", "file", "ro"])),
            max_size=12,
        )
    ):
        at += gap * PAGE
        more = {"anon": {}, "file": {"flags": 0x02, "status": 1 | 1 << 6}, "ro": {"prot": 1}}[kind]
        found.append(Vma(start=at, end=at + count * PAGE, **{**ANON, **more}))
        at += count * PAGE
    return found


@given(entries(), st.integers(1, 1 << 31))
def test_what_is_written_is_read_as_it_was(listed: tuple[Fields, ...], number: int) -> None:
    found = pagemaps.decode(pagemaps.encode(number, listed), "x")
    assert (found.pages_id, found.entries) == (number, listed)


@given(entries())
def test_it_is_what_criu_s_own_library_reads(listed: tuple[Fields, ...]) -> None:
    images = pytest.importorskip("pycriu.images")
    data = pagemaps.encode(3, listed)
    read = images.load(io.BytesIO(data))["entries"]
    assert read[0]["pages_id"] == 3
    assert [int(entry["vaddr"]) for entry in read[1:]] == [entry[1] for entry in listed]
    again = io.BytesIO()
    images.dump(images.load(io.BytesIO(data)), again)
    assert pagemaps.decode(again.getvalue(), "x").runs() == pagemaps.decode(data, "x").runs()


@given(entries())
def test_runs_cover_the_pages_image_without_a_gap(listed: tuple[Fields, ...]) -> None:
    pagemap = Pagemap(pages_id=1, entries=listed)
    offset = 0
    end = 0
    for run in pagemap.runs():
        assert run.offset == offset
        assert run.address > end, "it continues the one before"
        offset, end = offset + run.size, run.end
    assert offset == pagemap.size


def _pages(pagemap: Pagemap) -> dict[int, int]:
    """Address of each page to its offset in the pages image."""
    return {run.address + at: run.offset + at for run in pagemap.runs() for at in range(0, run.size, PAGE)}


@given(entries(), mappings(), st.sets(st.integers(0, 11)))
def test_every_page_is_either_criu_s_or_ours(listed: tuple[Fields, ...], vmas: list[Vma], shared: set[int]) -> None:
    pagemap = Pagemap(pages_id=7, entries=listed)
    theirs = frozenset((vma.start, vma.end) for number, vma in enumerate(vmas) if number in shared)
    made = split(vmas, pagemap, theirs)
    if made is None:
        return
    assert not set(made.ranges) & theirs
    kept = pagemaps.decode(made.pagemap, "x")
    assert kept.pages_id == 7
    assert all(pagemaps.flags(entry) == PARENT for entry in kept.entries)
    left = {
        pagemaps.address(entry) + at for entry in kept.entries for at in range(0, pagemaps.pages(entry) * PAGE, PAGE)
    }
    ours = {run.address + at: run.offset + at for run in made.runs for at in range(0, run.size, PAGE)}
    everything = _pages(pagemap)
    assert not left & ours.keys()
    assert left | ours.keys() == everything.keys()
    assert all(everything[address] == offset for address, offset in ours.items())
    for address in ours:
        (vma,) = [vma for vma in vmas if vma.start <= address < vma.end]
        assert (vma.flags, vma.prot) == (0x22, 3)
    for start, end in made.ranges:
        assert sum(PAGE for address in ours if start <= address < end) >= SMALLEST


def test_the_dump_before_keeps_what_it_has() -> None:
    listed = ({1: BASE, 2: 1000, 4: PRESENT}, {1: BASE + 1000 * PAGE, 2: 1, 3: 1})
    assert Pagemap(pages_id=1, entries=listed).has_parent
    assert split([Vma(BASE, BASE + 2000 * PAGE, **ANON)], Pagemap(pages_id=1, entries=listed), frozenset()) is None


@pytest.mark.parametrize(
    "odd",
    [
        {"flags": 0x2022},
        {"flags": 0x40022},
        {"flags": 0x122},
        {"flags": 0x21},
        {"prot": 1},
        {"status": 1 | 1 << 9 | 1 << 13},
    ],
)
def test_mappings_that_criu_puts_together_are_left_to_it(odd: dict[str, int]) -> None:
    pagemap = Pagemap(pages_id=1, entries=({1: BASE, 2: 1000, 4: PRESENT},))
    end = BASE + 1000 * PAGE
    assert split([Vma(BASE, end, **ANON)], pagemap, frozenset()) is not None
    assert split([Vma(BASE, end, **{**ANON, **odd})], pagemap, frozenset()) is None


GOOD = pagemaps.encode(1, [{1: BASE, 2: 4, 4: PRESENT}])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        GOOD[:7],
        GOOD[:-1],
        GOOD + b"\x01",
        b"\0" * 64,
        GOOD[:8],
        pagemaps.encode(1, [{1: BASE + 1, 2: 4}]),
        pagemaps.encode(1, [{1: BASE, 2: 0}]),
        pagemaps.encode(1, [{1: BASE, 2: 4}, {1: BASE, 2: 4}]),
        pagemaps.encode(1, [{1: BASE}]),
        pagemaps.encode(1, [{1: (1 << 64) - PAGE, 2: 4}]),
        GOOD[:8] + (2).to_bytes(4, "little") + b"\x0a\x00",
        GOOD[:8] + (12).to_bytes(4, "little") + b"\x08" + b"\xff" * 11,
    ],
)
def test_a_damaged_one_is_refused(data: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"x is (damaged|no pagemap)"):
        pagemaps.decode(data, "x")


@given(st.binary(max_size=80))
def test_whatever_stands_there_is_read_or_refused(data: bytes) -> None:
    try:
        pagemaps.decode(GOOD[:8] + data, "x")
    except CheckpointError:
        return


@given(entries(), st.lists(st.tuples(st.integers(0, 4000), st.integers(1, 900)), max_size=6))
def test_what_lies_within_ranges_and_outside_of_them_is_all(
    listed: tuple[Fields, ...], wanted: list[tuple[int, int]]
) -> None:
    ranges, end = [], BASE
    for gap, count in wanted:
        ranges.append((end + gap * PAGE, end + (gap + count) * PAGE))
        end = ranges[-1][1]
    runs = Pagemap(pages_id=1, entries=listed).runs()
    inside = [run for _, run in intersection(runs, ranges)]

    def pages(some: "list[Run] | tuple[Run, ...]") -> dict[int, int]:
        return {run.address + at: run.offset + at for run in some for at in range(0, run.size, PAGE)}

    assert pages(inside) | pages(outside(runs, ranges)) == pages(runs)
    assert not pages(inside).keys() & pages(outside(runs, ranges)).keys()
    assert all(any(start <= address < stop for start, stop in ranges) for address in pages(inside))
