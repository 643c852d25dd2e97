"""What the images do not hold comes along: an overlay rootfs, a pod's /dev/shm, a log; real runc, real CRIU."""

import json
import os
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from grit_runtime.checkpoint import integrity
from tests.integration.machine import Bundle, Machine, tree

pytestmark = pytest.mark.needs("root", "runc", "criu", "busybox")

LINE = "2026-01-01T00:00:00.000000000Z stdout F {}\n"


class Pods:
    """Makes bundles as containerd has them for a pod: an overlay rootfs, the sandbox's /dev/shm, a log."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.logs = machine.path / "podlogs"
        self.image = machine.path / "image"
        self.mounted: list[Path] = []
        self.configure()

    def configure(self, **contents: object) -> None:
        self.machine.configure(contents={"pod-logs": str(self.logs), **contents})

    def bundle(self, name: str, script: str, shm: Path | None = None, log: str = "") -> Bundle:
        """A container of a pod; without `shm`, the pod is a new one."""
        made = self.machine.bundle(name, script)
        rootfs = made.path / "rootfs"
        if not self.image.exists():
            rootfs.rename(self.image)
            (self.image / "lib").mkdir()
            (self.image / "lib/removed").write_text("removed\n")
            rootfs.mkdir()
        else:
            subprocess.run(["rm", "-r", str(rootfs)], check=True)
            rootfs.mkdir()
        layer = self.machine.path / "snapshots" / name
        for part in ("fs", "work"):
            (layer / part).mkdir(parents=True)
        words = f"lowerdir={self.image},upperdir={layer}/fs,workdir={layer}/work"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", words, str(rootfs)], check=True)
        self.mounted.append(rootfs)
        made.annotate(type="container", name="app", namespace="ns", restore_name="first")
        pod = {"io.kubernetes.cri.sandbox-name": name, "io.kubernetes.cri.sandbox-uid": made.uid}
        directory = shm or self.shm(name)
        made.edit(lambda c: c["annotations"].update(pod))
        made.edit(lambda c: c.update(mounts=[_bound(m, directory) for m in c["mounts"]]))
        self.log(made).parent.mkdir(parents=True)
        self.log(made).write_text(log)
        return made

    def shm(self, pod: str) -> Path:
        directory = self.machine.path / "shm" / pod
        directory.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "shm", str(directory)], check=True)
        directory.chmod(0o1777)
        self.mounted.append(directory)
        return directory

    def log(self, bundle: Bundle) -> Path:
        words = bundle.config()["annotations"]
        return self.logs / f"ns_{words['io.kubernetes.cri.sandbox-name']}_{bundle.uid}/app/0.log"

    @property
    def images(self) -> Path:
        return self.machine.checkpoints / "ns/first/app/checkpoint"

    def checkpoint(self, *flags: str) -> dict[str, object]:
        """Take a checkpoint of `old`; the manifest's section is returned."""
        self.machine.grit("checkpoint", *flags, "--image-path", str(self.images), "old").ok()
        section: dict[str, object] = json.loads((self.images / "grit.json").read_text())["contents"]
        return section

    def create(self, bundle: Bundle, name: str = "new") -> None:
        self.machine.grit("create", "--bundle", str(bundle.path), name).ok()


def _bound(mount: dict[str, object], shm: Path) -> dict[str, object]:
    if mount["destination"] != "/dev/shm":
        return mount
    return {"destination": "/dev/shm", "type": "bind", "source": str(shm), "options": ["rbind", "rw"]}


@contextmanager
def _pods(machine: Machine) -> Iterator[Pods]:
    pods = Pods(machine)
    try:
        yield pods
    finally:
        machine.clean()
        for path in reversed(pods.mounted):
            subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.fixture
def pods(machine: Machine) -> Iterator[Pods]:
    """Pods on a machine; their mounts go with them."""
    with _pods(machine) as made:
        yield made


COUNT = "i=0; while :; do i=$((i+1)); echo $i >> /data/out; {} sleep 0.02; done"


def test_what_changed_in_the_rootfs_is_there_and_open_files_go_on(pods: Pods, machine: Machine) -> None:
    script = (
        "echo changed > /etc/hostname2; rm -r /lib; mkdir -p '/srv/a b'; echo deep > '/srv/a b/f';"
        " ln '/srv/a b/f' /srv/hard; ln -s /data /srv/link; mkfifo /srv/fifo; chmod 4750 /srv/hard;"
        " exec 7>>/srv/open; exec 8>>/srv/deleted; rm /srv/deleted;" + COUNT.format("echo $i >&7; echo $i >&8;")
    )
    old = pods.bundle("old", script)
    machine.start("old", old)
    section = pods.checkpoint()
    assert section["rootfs-diff"]["file"] == "rootfs-diff.tar"  # type: ignore[index]
    last = old.numbers()[-1]
    new = pods.bundle("new", script)
    pods.create(new)
    root = new.path / "rootfs"
    assert (root / "etc/hostname2").read_text() == "changed\n"
    assert not (root / "lib").exists()
    assert (root / "srv/hard").stat().st_ino == (root / "srv/a b/f").stat().st_ino
    assert (root / "srv/hard").stat().st_mode & 0o7777 == 0o4750
    assert os.readlink(root / "srv/link") == "/data"
    assert (root / "srv/fifo").is_fifo()
    machine.grit("start", "new").ok()
    machine.counts(new)
    lines = (root / "srv/open").read_text().split()
    assert lines[: last + 1] == [str(n) for n in range(1, len(lines[: last + 1]) + 1)]
    assert int(lines[-1]) > last


def test_volumes_are_not_in_the_diff(pods: Pods, machine: Machine) -> None:
    old = pods.bundle("old", COUNT.format(""))
    machine.start("old", old)
    pods.checkpoint()
    with tarfile.open(pods.images / "rootfs-diff.tar") as tar:
        inside = [m for m in tar if m.isfile() and m.size and not m.name.rpartition("/")[2].startswith(".wh.")]
    assert inside == []


SHM = "echo one > /dev/shm/named; mkdir /dev/shm/dir; echo two > /dev/shm/dir/f; exec 7<>/dev/shm/open;"


def test_shared_memory_of_the_pod_comes_along(pods: Pods, machine: Machine) -> None:
    script = SHM + COUNT.format("echo $i >&7;")
    old = pods.bundle("old", script)
    machine.start("old", old)
    assert pods.checkpoint()["dev-shm"]["entries"] == 4  # type: ignore[index]
    new = pods.bundle("new", script)
    shm = machine.path / "shm/new"
    (shm / "named").write_text("the new pod's\n")
    pods.create(new)
    machine.grit("start", "new").ok()
    machine.counts(new)
    assert ((shm / "named").read_text(), (shm / "dir/f").read_text()) == ("the new pod's\n", "two\n")
    numbers = [int(line) for line in (shm / "open").read_text().split()]
    assert numbers == list(range(1, len(numbers) + 1))
    assert numbers[-1] >= new.numbers()[0]


SHARING = """
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>
int main(void) {
    int fd = open("/dev/shm/shared", O_RDWR | O_CREAT, 0600);
    ftruncate(fd, 1 << 20);
    atomic_long *both = mmap(0, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (fork() == 0)
        for (long seen = 0;; usleep(100)) /* answers each number with itself */
            if (atomic_load(both) != seen) atomic_store(both + 1000, seen = atomic_load(both));
    for (long number = 1;; number++) {
        atomic_store(both, number);
        while (atomic_load(both + 1000) != number) usleep(100);
        FILE *out = fopen("/data/out", "a");
        fprintf(out, "%ld\\n", number);
        fclose(out);
        usleep(5000);
    }
}
"""


@pytest.mark.needs("cc")
def test_two_processes_that_share_a_mapped_file_go_on_sharing_it(pods: Pods, machine: Machine) -> None:
    source = machine.path / "sharing.c"
    source.write_text(SHARING)
    old = pods.bundle("old", "exec /sharing")
    subprocess.run(["cc", "-static", "-O1", "-o", str(pods.image / "sharing"), str(source)], check=True)
    machine.start("old", old)
    assert pods.checkpoint()["dev-shm"]["entries"] == 1  # type: ignore[index]
    last = old.numbers()[-1]
    new = pods.bundle("new", "exec /sharing")
    pods.create(new)
    machine.grit("start", "new").ok()
    machine.counts(new)
    assert new.numbers()[0] == last + 1


def test_the_new_log_begins_with_the_old_lines(pods: Pods, machine: Machine) -> None:
    old = pods.bundle("old", COUNT.format(""), log=LINE.format("old 1") + LINE.format("old 2"))
    machine.start("old", old)
    assert pods.checkpoint()["log"]["bytes"] == pods.log(old).stat().st_size  # type: ignore[index]
    new = pods.bundle("new", COUNT.format(""))
    with open(pods.log(new), "a") as stream:  # containerd's
        pods.create(new)
        machine.grit("start", "new").ok()
        stream.write(LINE.format("new"))
    assert pods.log(new).read_text() == pods.log(old).read_text() + LINE.format("new")


def test_a_created_container_that_is_deleted_leaves_shared_memory_and_log_as_they_were(
    pods: Pods, machine: Machine
) -> None:
    old = pods.bundle("old", SHM + COUNT.format(""), log=LINE.format("old"))
    machine.start("old", old)
    pods.checkpoint()
    new = pods.bundle("new", COUNT.format(""), log=LINE.format("first"))
    pods.create(new)
    assert (machine.path / "shm/new/named").exists()
    machine.grit("delete", "--force", "new").ok()
    assert list((machine.path / "shm/new").iterdir()) == []
    assert pods.log(new).read_text() == LINE.format("first")


def test_what_is_too_large_is_left_out_and_said(pods: Pods, machine: Machine) -> None:
    pods.configure(**{"max-bytes": {"rootfs-diff": 10, "dev-shm": 10, "log": 50}})
    lines = "".join(LINE.format(n) for n in range(100))
    old = pods.bundle("old", "echo x > /etc/x; " + SHM + COUNT.format(""), log=lines)
    machine.start("old", old)
    section = pods.checkpoint("--leave-running")
    assert section["rootfs-diff"] == {"left-out": "it is larger than 10 bytes"}
    assert section["dev-shm"] == {"left-out": "it is larger than 10 bytes"}
    assert (pods.images / "container.log").read_text() == LINE.format(99)
    said = (machine.path / "log.json").read_text()
    for word in ("rootfs-diff was left out", "dev-shm was left out", "of its log were left out"):
        assert word in said
    assert not (pods.images / "rootfs-diff.tar").exists()
    machine.counts(old)


def test_a_switched_off_part_is_not_saved(pods: Pods, machine: Machine) -> None:
    pods.configure(**{"rootfs-diff": False, "dev-shm": False, "log": False})
    machine.start("old", pods.bundle("old", COUNT.format(""), log=LINE.format("x")))
    section = pods.checkpoint()
    assert {section[name]["left-out"] for name in ("rootfs-diff", "dev-shm", "log")} == {  # type: ignore[index]
        "switched off by the configuration"
    }


def test_a_full_disk_fails_the_checkpoint_and_the_container_runs_on(pods: Pods, machine: Machine) -> None:
    old = pods.bundle("old", "dd if=/dev/zero of=/big bs=1048576 count=24; " + COUNT.format(""))
    machine.start("old", old)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "small", str(machine.checkpoints)], check=True)
    try:
        ran = machine.grit("checkpoint", "--image-path", str(machine.checkpoints / "x"), "old")
        assert ran.code != 0
        assert "cannot save rootfs-diff of container old" in ran.err
        assert "No space left on device" in ran.err
        assert list(machine.checkpoints.iterdir()) == []
        machine.counts(old)
    finally:
        subprocess.run(["umount", str(machine.checkpoints)], check=True)


def test_a_hostile_diff_fails_the_restore_with_one_line_and_changes_nothing(pods: Pods, machine: Machine) -> None:
    old = pods.bundle("old", SHM + COUNT.format(""), log=LINE.format("x"))
    machine.start("old", old)
    pods.checkpoint()
    manifest = json.loads((pods.images / "grit.json").read_text())
    with tarfile.open(pods.images / "rootfs-diff.tar", "w") as tar:
        member = tarfile.TarInfo("a/../../../escaped")
        tar.addfile(member)
    sizes = {entry["name"]: (pods.images / entry["name"]).stat().st_size for entry in manifest["files"]}
    sums = integrity.of_files(str(pods.images), sizes, {}, 1)
    for entry in manifest["files"]:
        entry |= {"bytes": sizes[entry["name"]], "checksums": sums[entry["name"]]}
    (pods.images / "grit.json").write_text(json.dumps(manifest))
    before, node = tree(pods.images), tree(old.path)
    new = pods.bundle("new", COUNT.format(""))
    ran = machine.grit("create", "--bundle", str(new.path), "new")
    assert ran.code != 0
    assert "leads outside" in ran.err
    assert machine.containers() == []
    assert (tree(pods.images), tree(old.path)) == (before, node)
    assert list((machine.path / "shm/new").iterdir()) == []
    assert pods.log(new).read_text() == ""


def test_message_queues_are_named_in_the_error_of_the_dump(pods: Pods, machine: Machine) -> None:
    old = pods.bundle("old", ": > /dev/mqueue/orders; " + COUNT.format(""))
    machine.start("old", old)
    ran = machine.grit("checkpoint", "--image-path", str(machine.checkpoints / "x"), "old")
    assert ran.code != 0
    assert "POSIX message queues: '/orders'" in ran.err
    machine.counts(old)


@pytest.mark.timeout(600)
def test_a_restore_killed_at_any_step_leaves_shared_memory_and_log_as_they_were(pods: Pods, machine: Machine) -> None:
    script = SHM + COUNT.format("")
    old = pods.bundle("old", script, log=LINE.format("old"))
    machine.start("old", old)
    pods.checkpoint()
    pristine = tree(pods.images)
    new = pods.bundle("new", script, log=LINE.format("new"))
    shm = machine.path / "shm/new"
    (shm / "theirs").write_text("theirs")
    args = ("create", "--bundle", str(new.path), "new")
    steps = machine.path / "steps"
    machine.grit(*args, GRIT_TEST_STEPS=str(steps)).ok()
    machine.grit("delete", "--force", "new").ok()
    for step in range(1, int(steps.read_text()) + 1):
        assert machine.grit(*args, GRIT_TEST_KILL_AT=str(step)).code == -9
        assert "could not" not in machine.grit("recover").ok().out
        machine.grit("delete", "--force", "new")
        assert [p.name for p in shm.iterdir()] == ["theirs"], f"step {step}"
        assert pods.log(new).read_text() == LINE.format("new"), f"step {step}"
        assert machine.state.exists() is False or list(machine.state.iterdir()) == []
    assert tree(pods.images) == pristine
    pods.create(new)
    machine.grit("start", "new").ok()
    machine.counts(new)
    assert pods.log(new).read_text() == LINE.format("new") + LINE.format("old")
