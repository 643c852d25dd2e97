"""What is still to be filled behind a running process, and who sees to it that it is."""

import errno
import mmap
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grit_runtime.criu.memory.behind import Filler, Image, Space
from grit_runtime.criu.memory.pending import Part, Pending
from grit_runtime.errors import CheckpointError
from grit_runtime.host import keeper, vm
from grit_runtime.host.faults import Event, Faults, Moved, Removed, Touched

PAGES = 64
BASE = 0x1000
P = vm.PAGE
Model = dict[int, tuple[int, int]]
"""By page: image, and page in it."""


@st.composite
def parts(draw: st.DrawFn) -> list[Part]:
    """Parts that don't overlap, from images in an order of their own."""
    found, at = [], BASE
    for gap, count, image, offset in draw(
        st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6), st.integers(0, 1), st.integers(0, 99)), max_size=8)
    ):
        at += gap * P
        found.append(Part(at, at + count * P, image, offset * P))
        at += count * P
    return found


def _model(pending: Pending) -> Model:
    found: Model = {}
    left = pending.copy()
    while left:
        part = left.first()
        for page in range((part.end - part.start) // P):
            assert part.start // P + page not in found
            found[part.start // P + page] = (part.image, part.offset // P + page)
        left.remove(part.start, part.end)
    return found


pages = st.integers(0, PAGES).map(lambda page: BASE + page * P)


@given(parts(), st.lists(st.tuples(st.sampled_from(["remove", "move"]), pages, pages, st.integers(1, 20)), max_size=12))
def test_it_is_as_a_table_of_pages_would_have_it(made: list[Part], steps: list[tuple[str, int, int, int]]) -> None:
    pending = Pending(made)
    model = _model(pending)
    before = pending.copy()
    was = dict(model)
    for what, first, second, count in steps:
        size = count * P
        if what == "remove":
            gone = pending.remove(first, first + size)
            expected = {page for page in model if first <= page * P < first + size}
            assert sum(part.end - part.start for part in gone) == len(expected) * P
            model = {page: where for page, where in model.items() if page not in expected}
        elif abs(first - second) >= size:  # mremap(2) takes nothing that overlaps
            moved = {page for page in model if first <= page * P < first + size}
            replaced = {page for page in model if second <= page * P < second + size}
            kept = {page: where for page, where in model.items() if page not in moved | replaced}
            model = {**kept, **{page + (second - first) // P: model[page] for page in moved}}
            pending.move(first, second, size)
        assert _model(pending) == model
        for page in range(BASE // P, BASE // P + PAGES + 24):
            part = pending.at(page * P + 17)
            assert (part is not None) is (page in model)
            if part:
                assert (part.image, (part.offset + page * P - part.start) // P) == model[page]
    assert _model(before) == was  # a copy is another's


class Kernel:
    """Simulated memory of a process: what UFFDIO_COPY would put there, and what it says."""

    def __init__(self, size: int, events: list[Event | int]) -> None:
        self.memory = bytearray(size)
        self.there: set[int] = set()
        self.events = events
        self.said: list[int] = []
        self.fd, self._other = os.pipe()
        os.write(self._other, b"x")  # there is always something to be read
        self.gone = False

    def read(self) -> list[Event]:
        if not self.events:
            return []
        event = self.events.pop(0)
        if isinstance(event, int):
            self.said.append(event)
            return []
        if isinstance(event, Removed):
            for page in range(event.start, event.end, P):
                self._empty(page)
        if isinstance(event, Moved):
            for page in range(0, event.size, P):
                source, target = event.source + page, event.target + page
                self._empty(target)
                if source in self.there:
                    self.memory[target - BASE : target - BASE + P] = self.memory[source - BASE : source - BASE + P]
                    self.there.add(target)
                self._empty(source)
        return [event]

    def _empty(self, page: int) -> None:
        self.there.discard(page)
        self.memory[page - BASE : page - BASE + P] = bytes(P)

    def try_copy(self, target: int, source: int, size: int) -> tuple[int, int]:
        import ctypes

        if self.said:
            return 0, self.said.pop()
        for done in range(0, size, P):
            page = target + done
            if page in self.there:
                return (done, errno.EAGAIN) if done else (0, errno.EEXIST)
            self.memory[page - BASE : page - BASE + P] = ctypes.string_at(source + done, P)
            self.there.add(page)
        return size, 0

    def zero(self, target: int) -> None:
        if target in self.there:
            raise OSError(errno.EEXIST, "there")
        self.there.add(target)

    def wake(self, target: int) -> None:
        assert target % P == 0

    def close(self) -> None:
        os.close(self.fd)
        os.close(self._other)
        self.gone = True


def _image(path: Path, size: int) -> Image:
    path.write_bytes(os.urandom(size))
    return Image(str(path), os.open(path, os.O_RDONLY), size, None)


events = st.one_of(
    pages.map(Touched),
    st.tuples(pages, st.integers(1, 9)).map(lambda two: Removed(two[0], min(two[0] + two[1] * P, BASE + PAGES * P))),
    st.tuples(st.integers(0, 20), st.integers(30, 50), st.integers(1, 9)).map(
        lambda three: Moved(BASE + three[0] * P, BASE + three[1] * P, three[2] * P)
    ),
    st.sampled_from([errno.EAGAIN, errno.ENOENT]),
)


@given(st.lists(events, max_size=20))
def test_whatever_happens_each_page_holds_what_it_is_to_hold(happens: list[Event | int]) -> None:
    path = Path(f"/tmp/grit-test-image-{os.getpid()}")
    image = _image(path, PAGES * P)
    content = path.read_bytes()
    path.unlink()
    expected = bytearray(content + bytes(P))
    for event in happens:
        if isinstance(event, Removed):
            expected[event.start - BASE : event.end - BASE] = bytes(max(0, event.end - event.start))
        if isinstance(event, Moved):
            source, target = event.source - BASE, event.target - BASE
            expected[target : target + event.size] = expected[source : source + event.size]
            expected[source : source + event.size] = bytes(event.size)
    kernel = Kernel((PAGES + 1) * P, list(happens))
    space = Space(_faults(kernel), Pending([Part(BASE, BASE + PAGES * P, 0, 0)]))
    while kernel.events:  # each between two steps of the filling, at the latest before its end
        Filler([image], [space], stalled=5, beside=lambda: None)._attend(space)
    Filler([image], [space], stalled=5, beside=lambda: None).run()
    os.close(image.fd)
    assert kernel.gone
    assert kernel.memory == expected


def _faults(kernel: Kernel) -> Any:
    return kernel


def _filler(image: Image, kernel: Kernel, stalled: float = 5) -> Filler:
    space = Space(_faults(kernel), Pending([Part(BASE, BASE + 4 * P, 0, 0)]))
    return Filler([image], [space], stalled=stalled, beside=lambda: None)


@pytest.mark.parametrize(
    ("said", "what"), [(errno.EFAULT, "cannot be filled"), (errno.ENOMEM, "cannot be filled"), (errno.EIO, "filled")]
)
def test_what_the_kernel_does_not_take_is_an_error(tmp_path: Path, said: int, what: str) -> None:
    image = _image(tmp_path / "pages-1.img", 4 * P)
    kernel = Kernel(4 * P, [])
    kernel.try_copy = lambda *_: (0, said)  # type: ignore[method-assign]
    filler = _filler(image, kernel, 0.05)
    with pytest.raises(OSError, match=what):
        filler.run()
    assert not kernel.gone
    kernel.close()
    os.close(image.fd)


def test_a_process_that_is_gone_is_none_of_our_business(tmp_path: Path) -> None:
    image = _image(tmp_path / "pages-1.img", 4 * P)
    kernel = Kernel(4 * P, [])
    kernel.try_copy = lambda *_: (0, errno.ESRCH)  # type: ignore[method-assign]
    filler = _filler(image, kernel, 5)
    filler.run()
    assert (kernel.gone, filler.done) == (True, 0)
    os.close(image.fd)


def test_a_page_that_is_there_already_is_left_and_the_next_is_filled(tmp_path: Path) -> None:
    image = _image(tmp_path / "pages-1.img", 4 * P)
    kernel = Kernel(4 * P, [])
    kernel.there.add(BASE + P)
    _filler(image, kernel).run()
    content = Path(image.path).read_bytes()
    assert kernel.memory == content[:P] + bytes(P) + content[2 * P :]
    os.close(image.fd)


@pytest.mark.parametrize("damage", ["another checksum", "shorter"])
def test_nothing_of_a_damaged_image_is_used(tmp_path: Path, damage: str) -> None:
    image = _image(tmp_path / "pages-1.img", 4 * P)
    size = image.size * 2 if damage == "shorter" else image.size
    kernel = Kernel(8 * P, [])
    wrong = Image(image.path, image.fd, size, ("0" * 32,))
    filler = _filler(wrong, kernel, 5)
    with pytest.raises(CheckpointError, match=damage):
        filler.run()
    assert kernel.memory == bytes(8 * P)
    kernel.close()
    os.close(image.fd)


def test_messages_of_the_kernel() -> None:
    fault = b"\x12" + bytes(7) + (1).to_bytes(8, "little") + (0x7000).to_bytes(8, "little") + bytes(8)
    moved = b"\x14" + bytes(7) + b"".join(word.to_bytes(8, "little") for word in (1, 2, 3))
    emptied = b"\x15" + bytes(7) + b"".join(word.to_bytes(8, "little") for word in (4, 5, 0))
    unmapped = b"\x16" + bytes(7) + b"".join(word.to_bytes(8, "little") for word in (6, 7, 0))
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    faults = Faults(reading, of_a_fork=True)
    assert faults.read() == []
    os.write(writing, fault + moved + emptied + unmapped)
    assert faults.read() == [Touched(0x7000), Moved(1, 2, 3), Removed(4, 5), Removed(6, 7)]
    os.write(writing, b"\x77" + bytes(31))
    with pytest.raises(OSError, match="not known"):
        faults.read()
    os.close(writing)
    faults.close()


class Kept:
    """Work in processes of its own that is watched from here, through memory that all share."""

    def __init__(self) -> None:
        self.shared = mmap.mmap(-1, mmap.PAGESIZE)
        self.reading, self.writing = os.pipe()

    def start(self, work: Callable[[keeper.Beside], None]) -> bool:
        def failed(why: str) -> None:
            os.write(self.writing, f"{os.getpid()} {self._is_open()} {why}".encode())

        def noted(beside: keeper.Beside) -> None:
            self.shared[0:4] = os.getpid().to_bytes(4, "little")
            opened = os.open("/dev/null", os.O_RDONLY)
            self.shared[4:8] = opened.to_bytes(4, "little")
            work(beside)

        return keeper.start(noted, failed, [self.writing])

    def _is_open(self) -> bool:
        """Whether what the worker opened is open still."""
        try:
            return os.fstat(int.from_bytes(self.shared[4:8], "little")).st_rdev == os.stat("/dev/null").st_rdev
        except OSError:
            return False

    def worker(self) -> int:
        deadline = time.monotonic() + 10
        while not int.from_bytes(self.shared[4:8], "little"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return int.from_bytes(self.shared[0:4], "little")

    def said(self) -> str:
        """What was told of a failure, once both are gone."""
        os.close(self.writing)
        text = b""
        while data := os.read(self.reading, 4096):
            text += data
        os.close(self.reading)
        os.waitpid(self.worker(), 0)
        return text.decode()


def test_work_that_is_done_is_no_failure() -> None:
    kept = Kept()
    assert kept.start(lambda beside: beside())
    assert kept.said() == ""


def test_work_that_fails_says_why() -> None:
    def work(_: keeper.Beside) -> None:
        raise OSError(errno.EIO, "the disk is gone")

    kept = Kept()
    assert kept.start(work)
    pid, is_open, why = kept.said().split(maxsplit=2)
    assert (int(pid), is_open, why) == (kept.worker(), "True", "[Errno 5] the disk is gone")


def test_work_that_is_killed_is_told_by_another_which_has_all_that_it_had_open() -> None:
    kept = Kept()
    assert kept.start(lambda _: time.sleep(60))
    os.kill(kept.worker(), signal.SIGKILL)
    pid, is_open, why = kept.said().split(maxsplit=2)
    assert int(pid) != kept.worker()
    assert (is_open, why) == ("True", "the process that filled its memory was killed")


def test_a_watcher_that_is_killed_is_replaced() -> None:
    def work(beside: keeper.Beside) -> None:
        children = Path(f"/proc/self/task/{os.getpid()}/children")
        for _ in range(3):
            (first,) = children.read_text().split()
            os.kill(int(first), signal.SIGKILL)
            deadline = time.monotonic() + 10
            while children.read_text().split() in ([], [first]):
                assert time.monotonic() < deadline
                beside()
        kept.shared[8] = 1

    kept = Kept()
    assert kept.start(work)
    assert kept.said() == ""
    assert kept.shared[8] == 1
