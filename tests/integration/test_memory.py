"""Memory moved past CRIU: every byte is what it was, in whatever mapping; plain runc takes the images; and what is
damaged, full or forbidden ends in an error, with nothing left.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from grit_runtime.criu.memory import fill, save
from grit_runtime.criu.pagemap import PAGE, PRESENT, Pagemap
from grit_runtime.errors import CheckpointError
from grit_runtime.host import inject, vm
from tests.integration.machine import Bundle, Machine, tree
from tests.integration.surroundings import Situation

pytestmark = [pytest.mark.needs("root", "runc", "criu", "busybox", "cc"), pytest.mark.timeout(120)]
PROGRAMS = ["memory-kinds", "memory-inherited", "memory-threads", "memory-segments"]


def _good(answer: list[str]) -> None:
    assert answer
    assert [line for line in answer if not line.startswith("ok ")] == []


def _log(machine: Machine) -> str:
    return (machine.path / "log.json").read_text()


@pytest.mark.parametrize("transport", ["parallel", "criu"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_every_byte_is_what_it_was(machine: Machine, program: str, transport: str) -> None:
    machine.configure(memory={"transport": transport})
    situation = Situation(machine, program)
    _good(situation.travel())
    if program != "memory-inherited":  # whose memory CRIU restores once, for both
        assert ("MiB of memory filled" in _log(machine)) is (transport == "parallel")


@pytest.mark.parametrize("program", PROGRAMS)
def test_plain_runc_takes_what_was_written_past_criu(machine: Machine, program: str) -> None:
    machine.configure(memory={"transport": "parallel"})
    situation = Situation(machine, program)
    situation.start()
    situation.checkpoint()
    new = situation.bundle("new")
    situation.bring(new)
    machine.runc("restore", "-d", "--image-path", str(situation.images), "--bundle", str(new.path), "new").ok()
    _good(situation.answer(new))
    for name in ("restore.log", "stats-restore"):
        (situation.images / name).unlink(missing_ok=True)


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_plain_runc_wrote_is_filled_past_criu(machine: Machine, program: str) -> None:
    machine.configure(memory={"transport": "parallel"})
    situation = Situation(machine, program)
    situation.start()
    machine.runc("checkpoint", "--file-locks", "--image-path", str(situation.images), "old").ok()
    situation.old.path.rename(machine.path / "gone")
    _good(situation.restore())
    if program != "memory-inherited":
        assert "MiB of memory filled" in _log(machine)


def test_a_kernel_without_userfaultfd_is_no_reason_to_go_back_to_criu(machine: Machine) -> None:
    situation = Situation(machine, "memory-kinds")
    situation.start()
    situation.checkpoint()
    new = situation.bundle("new")
    situation.bring(new)
    argv = ["restore", "-d", "--image-path", str(situation.images), "-b", str(new.path), "new"]
    machine.grit(*argv, GRIT_TEST_NO_USERFAULTFD="1").ok()
    _good(situation.answer(new))
    assert "by process_vm_writev" in _log(machine)


def test_three_generations_and_a_container_that_lives_on(machine: Machine) -> None:
    situation = Situation(machine, "memory-kinds")
    situation.start()
    images = situation.images
    machine.grit("checkpoint", "--leave-running", "--image-path", str(images), "old").ok()
    machine.grit("checkpoint", "--image-path", str(machine.checkpoints / "second"), "old").ok()
    shutil.copytree(situation.old.path, machine.path / "gone", symlinks=True, ignore=shutil.ignore_patterns("ready"))
    first = situation.bundle("first")
    machine.grit("restore", "-d", "--image-path", str(images), "-b", str(first.path), "first").ok()
    machine.grit("checkpoint", "--image-path", str(machine.checkpoints / "third"), "first").ok()
    for number, source in enumerate(("second", "third")):
        new = situation.bundle(f"new{number}")
        argv = ["restore", "-d", "--image-path", str(machine.checkpoints / source), "-b", str(new.path), f"new{number}"]
        machine.grit(*argv).ok()
        _good(situation.answer(new))


def _stopped(machine: Machine, program: str = "memory-threads") -> Situation:
    situation = Situation(machine, program)
    situation.start()
    situation.checkpoint()
    return situation


def test_a_single_wrong_bit_is_found(machine: Machine) -> None:
    situation = _stopped(machine)
    pages = max(situation.images.glob("pages-*.img"), key=lambda path: path.stat().st_size)
    with open(pages, "r+b") as stream:
        stream.seek(pages.stat().st_size // 2)
        byte = stream.read(1)
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte[0] ^ 1]))
    err = situation.cannot_be_restored()
    assert pages.name in err
    assert "checksum" in err


@pytest.mark.parametrize("name", ["pstree.img", "core-1.img"])
def test_a_small_image_that_is_not_what_it_was_is_found_before_anything(machine: Machine, name: str) -> None:
    situation = _stopped(machine)
    image = situation.images / name
    data = bytearray(image.read_bytes())
    data[-1] ^= 1
    image.write_bytes(data)
    assert "damaged" in situation.cannot_be_restored()


def test_an_image_of_plain_runc_that_was_cut_is_found(machine: Machine) -> None:
    situation = Situation(machine, "memory-threads")
    situation.start()
    machine.runc("checkpoint", "--file-locks", "--image-path", str(situation.images), "old").ok()
    situation.old.path.rename(machine.path / "gone")
    pages = max(situation.images.glob("pages-*.img"), key=lambda path: path.stat().st_size)
    os.truncate(pages, pages.stat().st_size - PAGE)
    assert "shorter than its pagemap says" in situation.cannot_be_restored()


def test_holes_may_get_lost_on_the_way(machine: Machine) -> None:
    situation = _stopped(machine, "memory-kinds")
    pages = max(situation.images.glob("pages-*.img"), key=lambda path: path.stat().st_size)
    sparse = pages.stat()
    assert sparse.st_blocks * 512 < sparse.st_size, "zeros take no room"
    data = pages.read_bytes()
    pages.unlink()
    pages.write_bytes(data)
    _good(situation.restore())


def test_a_full_disk_leaves_the_container_running(machine: Machine) -> None:
    situation = Situation(machine, "memory-threads")
    situation.start()
    small = machine.path / "small"
    small.mkdir()
    machine.shell("mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(small))
    machine.mounted.append(small)
    failed = machine.grit("checkpoint", "--image-path", str(small / "c"), "old")
    assert failed.code != 0
    assert "cannot write the memory of container old" in failed.err
    assert list(small.iterdir()) == []
    assert machine.status("old") == "running"
    _good(situation.answer(situation.old))
    machine.clean()


def test_a_memory_limit_that_is_too_low_is_an_error_and_nothing_is_left(machine: Machine) -> None:
    situation = _stopped(machine)
    limit = {"memory": {"limit": 48 << 20}}
    err = situation.cannot_be_restored(change=lambda config: config["linux"]["resources"].update(limit))
    assert "container new" in err


def _filling(machine: Machine, situation: Situation, new: Bundle) -> "subprocess.Popen[bytes]":
    """A restore that has begun to fill memory, slowly."""
    argv = machine.argv("restore", "-d", "--image-path", str(situation.images), "-b", str(new.path), "new")
    environment = {**machine.environment(), "GRIT_TEST_SLOW_FILL": "1"}
    process = subprocess.Popen(
        argv, env=environment, cwd=machine.path, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    machine.wait(lambda: (machine.path / "filling").exists())
    return process


@pytest.mark.parametrize("moment", [0.02, 0.1, 0.2])
def test_a_runtime_killed_while_memory_is_filled_leaves_nothing(machine: Machine, moment: float) -> None:
    situation = _stopped(machine)
    new = situation.bundle("new")
    situation.bring(new)
    process = _filling(machine, situation, new)
    time.sleep(moment)
    process.send_signal(signal.SIGKILL)
    process.wait()
    machine.grit("recover").ok()
    assert machine.status("new") == "gone"
    machine.grit("restore", "-d", "--image-path", str(situation.images), "-b", str(new.path), "new").ok()
    _good(situation.answer(new))


def test_a_worker_killed_while_memory_is_filled_is_an_error_and_nothing_is_left(machine: Machine) -> None:
    machine.configure(memory={"workers": 2})
    situation = _stopped(machine)
    new = situation.bundle("new")
    situation.bring(new)
    process = _filling(machine, situation, new)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children}
    workers = [pid for pid, command in commands.items() if command == Path(f"/proc/{process.pid}/cmdline").read_bytes()]
    assert len(workers) == 2
    os.kill(int(workers[0]), signal.SIGKILL)
    assert process.wait(60) == 1
    said = [json.loads(line) for line in _log(machine).splitlines()][-1]
    assert said["level"] == "error"
    assert "cannot fill the memory of container new" in said["msg"]
    assert "was ended by signal 9" in said["msg"]
    assert machine.status("new") == "gone"
    assert not Path(f"/proc/{workers[1]}").exists()
    machine.grit("restore", "-d", "--image-path", str(situation.images), "-b", str(new.path), "new").ok()
    _good(situation.answer(new))


def test_parallel_alone_is_refused_where_it_cannot_be(machine: Machine) -> None:
    machine.configure(memory={"transport": "parallel"})
    situation = Situation(machine, "memory-threads")
    situation.start()
    before = tree(situation.old.path)
    machine.configure(memory={"transport": "parallel"}, cuda={"mode": "driver"})
    machine.grit("checkpoint", "--image-path", str(situation.images), "old").ok()
    assert tree(situation.old.path) == before
    situation.old.path.rename(machine.path / "gone")
    new = situation.bundle("new")
    situation.bring(new)
    argv = ("restore", "-d", "--shell-job", "--image-path", str(situation.images), "-b", str(new.path), "new")
    failed = machine.grit(*argv)
    assert failed.code != 0
    assert "memory.transport: parallel" in failed.err
    machine.configure()
    machine.grit(*argv).ok()
    _good(situation.answer(new))


def test_the_manifest_has_a_checksum_of_every_chunk(machine: Machine) -> None:
    situation = _stopped(machine)
    manifest = json.loads((situation.images / "grit.json").read_text())
    chunk = manifest["checksums"]["chunk"]
    for entry in manifest["files"]:
        assert len(entry["checksums"]) == -(-entry["bytes"] // chunk)


def _seen(pid: int) -> list[str]:
    """What an injection could have changed: state, signals and their masks, filters, mappings, registers."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    kept = [
        line
        for line in status
        if line.split(":")[0] in ("State", "TracerPid") or line.startswith(("Sig", "Shd", "Sec"))
    ]
    return [*kept, Path(f"/proc/{pid}/maps").read_text(), Path(f"/proc/{pid}/syscall").read_text()]


class TestWithinAProcess:
    """The parts, on a process of the test's own."""

    SIZE = 40 << 20

    @pytest.fixture
    def child(self) -> "subprocess.Popen[bytes]":
        script = (
            f"import mmap, ctypes, sys; m = mmap.mmap(-1, {self.SIZE}, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS); "
            "print(ctypes.addressof(ctypes.c_char.from_buffer(m)), flush=True); sys.stdin.read()"
        )
        process = subprocess.Popen(["python3", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        yield process
        process.kill()
        process.wait()

    def _address(self, child: "subprocess.Popen[bytes]") -> int:
        address = int(child.stdout.readline())
        child.send_signal(signal.SIGSTOP)
        while Path(f"/proc/{child.pid}/stat").read_text().split()[2] != "T":
            time.sleep(0.01)
        return address

    @pytest.mark.parametrize("place", ["tmpfs", "disk"])
    @pytest.mark.parametrize("way", ["userfault", "writing"])
    def test_random_pagemaps_go_out_and_come_back(
        self, child: "subprocess.Popen[bytes]", tmp_path: Path, place: str, way: str
    ) -> None:
        import random

        base = self._address(child)
        memory = fill.ByWriting(child.pid)
        userfault = None
        if way == "userfault":
            userfault = vm.Userfault(inject.userfaultfd(child.pid))
            userfault.register(base, self.SIZE)
            memory = fill.ByUserfault(child.pid, userfault)
        folder = Path("/dev/shm") / tmp_path.name if place == "tmpfs" else tmp_path
        folder.mkdir(exist_ok=True)
        try:
            pick, at, entries = random.Random(place + way), base, []
            while at < base + self.SIZE - 700 * PAGE:
                at += pick.choice([0, 1, 3, 200]) * PAGE
                count = min(pick.choice([1, 2, 255, 600]), (base + self.SIZE - at) // PAGE)
                entries.append({1: at, 2: count, 4: PRESENT})
                at += count * PAGE
            pagemap = Pagemap(pages_id=1, entries=tuple(entries))
            data = b"".join(
                bytes(run.size) if run.size < 3 * PAGE else os.urandom(run.size // 2) + bytes(run.size - run.size // 2)
                for run in pagemap.runs()
            )
            image = folder / "pages-1.img"
            image.write_bytes(data)
            runs = tuple((run, memory) for run in pagemap.runs())
            first = fill.Image(path=str(image), size=pagemap.size, runs=runs, checksums=None)
            assert 0 < fill.fill([first], 3) <= len(data)
            if userfault:
                userfault.unregister(base, self.SIZE)
            again = folder / "pages-2.img"
            made = save.save([save.Image(path=str(again), pagemap=pagemap, memory=save.OfProcess(child.pid))], 3)
            assert again.read_bytes() == data
            checksums = tuple(made["pages-2.img"])
            same = fill.Image(path=str(image), size=pagemap.size, runs=(), checksums=checksums)
            assert fill.fill([same], 2) == 0
            with open(image, "r+b") as stream:
                stream.seek(len(data) // 3 * 2)
                stream.write(b"!")
            with pytest.raises(CheckpointError, match="another checksum"):
                fill.fill([same], 2)
        finally:
            if userfault:
                userfault.close()
            shutil.rmtree(folder)

    def test_a_process_that_is_not_stopped_is_left_alone(self, child: "subprocess.Popen[bytes]") -> None:
        child.stdout.readline()
        with pytest.raises(inject.InjectError, match="not stopped"):
            inject.userfaultfd(child.pid)

    def test_nothing_of_an_injection_is_left(self, child: "subprocess.Popen[bytes]") -> None:
        self._address(child)
        descriptors, before = os.listdir(f"/proc/{child.pid}/fd"), _seen(child.pid)
        for _ in range(20):
            os.close(inject.userfaultfd(child.pid))
        assert _seen(child.pid) == before
        assert os.listdir(f"/proc/{child.pid}/fd") == descriptors
        child.send_signal(signal.SIGCONT)
        child.stdin.close()
        assert child.wait(10) == 0

    def test_a_process_with_a_filter_of_system_calls_is_filled(self) -> None:
        """seccomp(2), strict: any call but read and write kills it."""
        script = (
            "import ctypes, os, sys; libc = ctypes.CDLL(None); sys.stdout.write('ready\\n'); sys.stdout.flush(); "
            "libc.prctl(22, 1, 0, 0, 0); os.read(0, 1); libc.syscall(60, 0)"
        )
        process = subprocess.Popen(["python3", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"ready\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGSTOP)
        while Path(f"/proc/{process.pid}/stat").read_text().split()[2] != "T":
            time.sleep(0.01)
        os.close(inject.userfaultfd(process.pid))
        assert "Seccomp:\t1" in Path(f"/proc/{process.pid}/status").read_text()
        process.send_signal(signal.SIGCONT)
        process.stdin.write(b"x")
        process.stdin.close()
        assert process.wait(10) == 0, "the filter has let exit(2) pass, and nothing else"

    def test_memory_that_is_not_there_is_an_error(self, child: "subprocess.Popen[bytes]", tmp_path: Path) -> None:
        self._address(child)
        pagemap = Pagemap(pages_id=1, entries=({1: PAGE, 2: 4, 4: PRESENT},))
        image = save.Image(path=str(tmp_path / "pages-1.img"), pagemap=pagemap, memory=save.OfProcess(child.pid))
        with pytest.raises(OSError, match=r"rror|cannot read"):
            save.save([image], 2)
