"""The driver's staging memory: followed as it is taken, and mapped from images (real processes; CUDA is SIMULATED)."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from grit_runtime.host import extents, follow, inject, remap
from grit_runtime.host.remap import Piece
from tests.integration.machine import Ran
from tests.simulated.driver import SimulatedGpu

pytestmark = [pytest.mark.needs("root"), pytest.mark.timeout(120)]

SIZE = 64 << 20
POPULATE = 0x8000
# Each line that it reads has a number of bytes and flags; it takes them, and answers with the address and what is
# there.
TAKER = """
import ctypes, mmap, signal, sys, threading
seen, kept = [], []
signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
for line in sys.stdin:
    before = resident()
    flags = int(line.split()[1]) | mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    taken = mmap.mmap(-1, int(line.split()[0]), flags=flags)
    kept.append(taken)
    made, at = resident() - before, ctypes.addressof(ctypes.c_char.from_buffer(taken))
    clean = not taken.rfind(b"\\1") >= 0
    print(at, made, clean, len(seen), flush=True)
"""


class Taker:
    """A process that takes memory when it is told to."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", TAKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self.process.pid
        self.take(4096, 0)

    def take(self, size: int, flags: int = POPULATE) -> list[str]:
        """Address, bytes that were made, whether they are zeros, and how many signals it has had."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{size} {flags}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().split()

    def tracer(self) -> str:
        """Who traces it: `0` if nobody does."""
        return Path(f"/proc/{self.pid}/status").read_text().split("TracerPid:")[1].split()[0]


@pytest.fixture
def taker() -> Iterator[Taker]:
    made = Taker()
    yield made
    made.process.kill()
    made.process.wait()


def _until(true: object, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)


class TestFollowing:
    @pytest.mark.parametrize("workers", [1, 3])
    def test_what_is_taken_is_made_and_told(self, taker: Taker, workers: int) -> None:
        with follow.followed([(taker.pid, taker.pid)], workers) as taken:
            assert taker.tracer() != "0"
            (at, made, clean, _), again = taker.take(SIZE), taker.take(SIZE + 4095)
        assert not taken.problem
        assert (clean, again[2]) == ("True", "True")
        assert min(int(made), int(again[1])) >= SIZE
        first, second = int(at), int(again[0])
        assert taken.ranges == {taker.pid: [(first, first + SIZE), (second, second + SIZE + 4096)]}
        assert taker.tracer() == "0"

    @pytest.mark.parametrize(("size", "flags"), [(SIZE, 0), (SIZE, POPULATE | 0x4000), (1 << 20, POPULATE)])
    def test_other_memory_is_none_of_our_business(self, taker: Taker, size: int, flags: int) -> None:
        with follow.followed([(taker.pid, taker.pid)], 2) as taken:
            made = int(taker.take(size, flags)[1])
        assert taken.ranges == {}
        assert (made >= size) == bool(flags & POPULATE)

    def test_it_gets_its_signals(self, taker: Taker) -> None:
        with follow.followed([(taker.pid, taker.pid)], 2) as taken:
            for _ in range(5):
                os.kill(taker.pid, signal.SIGUSR1)
                time.sleep(0.05)
            seen = taker.take(SIZE)[3]
        assert seen == "5"
        assert taken.ranges

    def test_a_stop_holds_until_it_is_continued(self, taker: Taker) -> None:
        with follow.followed([(taker.pid, taker.pid)], 2) as taken:
            os.kill(taker.pid, signal.SIGSTOP)
            time.sleep(0.2)
            assert taker.process.stdin
            taker.process.stdin.write(f"{SIZE} {POPULATE}\n")
            taker.process.stdin.flush()
            time.sleep(0.3)
            os.kill(taker.pid, signal.SIGCONT)
            assert taker.process.stdout
            assert taker.process.stdout.readline().split()[2] == "True"
        assert len(taken.ranges[taker.pid]) == 1

    def test_one_that_is_stopped_at_the_end_stays_stopped(self, taker: Taker) -> None:
        with follow.followed([(taker.pid, taker.pid)], 2):
            os.kill(taker.pid, signal.SIGSTOP)
            time.sleep(0.2)
        time.sleep(0.2)
        assert Path(f"/proc/{taker.pid}/stat").read_text().split()[2] == "T"
        os.kill(taker.pid, signal.SIGCONT)
        assert taker.take(4096)[2] == "True"

    def test_it_goes_on_if_the_tracer_is_killed(self, taker: Taker) -> None:
        with follow.followed([(taker.pid, taker.pid)], 2) as taken:
            os.kill(int(taker.tracer()), signal.SIGKILL)
            _until(lambda: taker.tracer() == "0")
            assert int(taker.take(SIZE)[1]) >= SIZE
        assert "signal 9" in taken.problem
        assert taken.ranges == {}

    def test_it_is_let_go_soon_after(self, taker: Taker) -> None:
        """Each system call takes longer while it is followed."""
        with follow.followed([(taker.pid, taker.pid)], 2) as taken:
            taker.take(SIZE)
            assert taker.tracer() != "0"
            for _ in range(300):
                taker.take(4096, 0)
            assert taker.tracer() == "0"
        assert len(taken.ranges[taker.pid]) == 1
        assert not taken.problem

    def test_it_may_end_meanwhile(self, taker: Taker) -> None:
        begun = time.monotonic()
        with follow.followed([(taker.pid, taker.pid)], 2):
            taker.process.kill()
            assert taker.process.wait(5) == -signal.SIGKILL
        assert time.monotonic() - begun < 3

    def test_one_that_somebody_else_traces_is_let_alone(self, taker: Taker) -> None:
        with follow.followed([(taker.pid, taker.pid)], 2) as first:
            with follow.followed([(taker.pid, taker.pid)], 2) as second:
                assert taker.take(SIZE)[2] == "True"
            assert "not permitted" in second.problem
        assert len(first.ranges[taker.pid]) == 1


# It fills memory with a pattern, and compares it with what it wrote whenever it is told to.
HOLDER = """
import ctypes, mmap, sys
m = mmap.mmap(-1, int(sys.argv[1]), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
print(ctypes.addressof(ctypes.c_char.from_buffer(m)), flush=True)
for line in sys.stdin:
    word, at, *value = line.split()
    if word == "write":
        m[int(at)] = int(value[0])
    print(m[int(at)], flush=True)
"""


class Holder:
    """A process that reads and writes a byte of its memory when it is told to, and is stopped otherwise."""

    def __init__(self, size: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(size)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout
        self.pid, self.address = self.process.pid, int(self.process.stdout.readline())
        self.stop()

    def stop(self) -> None:
        """Stop it."""
        os.kill(self.pid, signal.SIGSTOP)
        _until(lambda: Path(f"/proc/{self.pid}/stat").read_text().split()[2] == "T")

    def do(self, *words: object) -> int:
        """One command, and its answer."""
        assert self.process.stdin
        assert self.process.stdout
        os.kill(self.pid, signal.SIGCONT)
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        answer = int(self.process.stdout.readline())
        self.stop()
        return answer


@pytest.fixture
def holder() -> Iterator[Holder]:
    made = Holder(SIZE)
    yield made
    made.process.kill()
    made.process.wait()


@pytest.fixture(params=["tmpfs", "disk"])
def image(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    file = Path("/dev/shm") / f"{tmp_path.name}.img" if request.param == "tmpfs" else tmp_path / "pages-1.img"
    file.write_bytes(bytes(range(1, 251)) * ((SIZE + 4096) // 250 + 1))
    yield file
    file.unlink(missing_ok=True)


def _map(holder: Holder, image: Path, *pieces: Piece) -> remap.Mapped:
    fd = os.open(image, os.O_RDONLY)
    try:
        return remap.map_file(holder.pid, fd, pieces)
    finally:
        os.close(fd)


class TestMapping:
    def test_a_file_is_memory_and_stays_as_it_is(self, holder: Holder, image: Path) -> None:
        before = image.read_bytes()
        descriptors = sorted(os.listdir(f"/proc/{holder.pid}/fd"))
        second = Piece(holder.address + (1 << 20), SIZE - (2 << 20), 8192)
        mapped = _map(holder, image, Piece(holder.address, 4096, 4096), second)
        assert sorted(os.listdir(f"/proc/{holder.pid}/fd")) == descriptors
        assert holder.do("read", 0) == before[4096]
        assert holder.do("read", 4096) == 0, "what is in no piece stays as it is"
        assert holder.do("read", (1 << 20) + 777_777) == before[8192 + 777_777]
        assert holder.do("write", 0, 255) == 255
        assert [end - start for start, end, _ in remap.left(mapped)] == [4096, second.size]
        assert image.read_bytes() == before

    def test_a_hole_takes_no_room(self, holder: Holder, image: Path) -> None:
        """tmpfs would have pages made for it."""
        before = image.read_bytes()
        at, size = 8 << 20, 32 << 20
        with open(image, "r+b") as stream:
            extents.punch_hole(stream.fileno(), at, size)
        room = image.stat().st_blocks
        mapped = _map(holder, image, Piece(holder.address, SIZE, 4096))
        assert len(remap.left(mapped)) == 2
        for offset in range(at - 4096, at - 4096 + size, 1 << 20):
            assert holder.do("read", offset) == 0
        assert holder.do("read", at - 4097) == before[at - 1]
        assert holder.do("read", at - 4096 + size) == before[at + size]
        assert image.stat().st_blocks == room
        assert remap.make_own(mapped) == SIZE - size

    def test_what_is_left_becomes_its_own(self, holder: Holder, image: Path) -> None:
        before = image.read_bytes()
        mapped = _map(holder, image, Piece(holder.address, SIZE, 4096))
        assert holder.do("write", 5 << 20, 255) == 255
        assert remap.make_own(mapped) == SIZE
        assert remap.make_own(mapped) == 0
        assert str(image) not in Path(f"/proc/{holder.pid}/maps").read_text()
        image.write_bytes(b"")  # nothing depends on it any more
        assert holder.do("read", 5 << 20) == 255
        for at in (0, (5 << 20) + 1, SIZE - 1):
            assert holder.do("read", at) == before[4096 + at]

    def test_all_of_it_or_nothing(self, holder: Holder, image: Path) -> None:
        with pytest.raises(inject.InjectError, match="Invalid argument"):
            _map(holder, image, Piece(holder.address, 4 << 20, 0), Piece(holder.address + (8 << 20) + 1, 4096, 4096))
        assert str(image) not in Path(f"/proc/{holder.pid}/maps").read_text()
        assert holder.do("read", 0) == 0
        assert holder.do("write", 0, 7) == 7

    def test_a_process_without_descriptors_to_spare_stays_as_it_is(self, holder: Holder, image: Path) -> None:
        import resource

        resource.prlimit(holder.pid, resource.RLIMIT_NOFILE, (3, 3))
        with pytest.raises(inject.InjectError, match="Too many open files"):
            _map(holder, image, Piece(holder.address, SIZE, 0))
        assert str(image) not in Path(f"/proc/{holder.pid}/maps").read_text()
        assert holder.do("read", 0) == 0


@pytest.mark.needs("runc", "criu", "busybox", "cc")
class TestContainer:
    """With the SIMULATED driver, which takes and gives back staging memory as the real one does."""

    def _captured(self, gpu: SimulatedGpu) -> dict:
        manifest: dict = json.loads((gpu.machine.checkpoints / "c/grit.json").read_text())
        return manifest

    def test_it_is_seen_at_the_capture_and_mapped_at_the_restore(self, gpu: SimulatedGpu) -> None:
        old = gpu.start("old")
        gpu.capture().ok()
        ((start, end),) = self._captured(gpu)["cuda"]["processes"][0]["staging"]
        assert end - start == 64 << 20
        new = gpu.copy_of(old)
        assert "64 MiB of staging memory were mapped" in _log(gpu, gpu.restore(new))
        gpu.goes_on(new)
        assert "pages-" not in Path(f"/proc/{gpu.machine.state_of('new')['pid']}/maps").read_text()

    def test_what_the_driver_keeps_is_copied(self, gpu: SimulatedGpu) -> None:
        """As no known driver does; it can be captured and restored again."""
        old = gpu.start("old", keeps=True)
        gpu.capture().ok()
        new = gpu.copy_of(old)
        assert "the driver kept 1 MiB" in _log(gpu, gpu.restore(new))
        gpu.goes_on(new)
        assert "pages-" not in Path(f"/proc/{gpu.machine.state_of('new')['pid']}/maps").read_text()

    @pytest.mark.parametrize("case", ["never", "others may write it"])
    def test_it_is_filled_where_it_may_not_be_mapped(self, gpu: SimulatedGpu, case: str) -> None:
        old = gpu.start("old")
        gpu.capture().ok()
        if case == "never":
            gpu.configure(staging="never")
        else:
            for image in (gpu.machine.checkpoints / "c").glob("pages-*.img"):
                image.chmod(0o666)
        new = gpu.copy_of(old)
        said = _log(gpu, gpu.restore(new))
        assert "mapped from the images" not in said
        assert ("others than root may write" in said) == (case != "never")
        gpu.goes_on(new)

    def test_damage_is_found_before_anything_runs(self, gpu: SimulatedGpu) -> None:
        old = gpu.start("old")
        gpu.capture().ok()
        image = max((gpu.machine.checkpoints / "c").glob("pages-*.img"), key=lambda path: path.stat().st_size)
        with open(image, "r+b") as stream:
            stream.seek(image.stat().st_size // 2)
            stream.write(b"damaged")
        new = gpu.copy_of(old)
        before = (new.data / "out").read_bytes()
        tried = gpu.restore(new)
        assert tried.code != 0
        assert "is not what it was" in tried.err
        assert gpu.machine.status("new") == "gone"
        assert (new.data / "out").read_bytes() == before
        assert gpu.used() == 0


def _log(gpu: SimulatedGpu, ran: Ran) -> str:
    ran.ok()
    return (gpu.machine.path / "log.json").read_text()
