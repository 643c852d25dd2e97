"""Checkpoints that others wrote, and ours in one file: real runc, real CRIU."""

import gzip
import io
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.integration.machine import Bundle, Machine, tree
from tests.integration.test_mounts import checkpoint, inside, mount, restore
from tests.requirements import CHECKPOINTCTL

pytestmark = pytest.mark.needs("root", "runc", "criu", "busybox")

SPEC = {"annotations": {"io.kubernetes.cri.container-name": "app", "io.kubernetes.cri.container-type": "container"}}
DUMPS = {"config.dump": b'{"id": "x"}', "spec.dump": json.dumps(SPEC).encode()}


def by_runc(machine: Machine, taken: Path, configuration: str = "") -> Bundle:
    old = machine.bundle("old")
    machine.start("old", old)
    env = {}
    if configuration:
        (machine.path / "criu.conf").write_text(configuration)
        env = {"CRIU_CONFIG_FILE": str(machine.path / "criu.conf")}
    machine.runc("checkpoint", "--image-path", str(taken), "--work-path", f"{machine.path}/w", "old", **env).ok()
    return old


def _annotated(machine: Machine, value: Path, *, name: str = "app") -> Bundle:
    new = machine.bundle("new")
    new.annotate(type="container", name=name, namespace="ns", checkpoint=str(value))
    return new


def _create(machine: Machine, new: Bundle) -> None:
    machine.grit("create", "--bundle", str(new.path), "new").ok()
    machine.grit("start", "new").ok()
    machine.counts(new)


def tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def archive(path: Path, images: Path, files: dict[str, bytes]) -> Path:
    """An archive as others write it."""
    with tarfile.open(path, "w") as tar:
        tar.add(images, "checkpoint")
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


def test_plain_images_of_runc(machine: Machine) -> None:
    taken = machine.checkpoints / "c"
    by_runc(machine, taken)
    restore(machine, taken, machine.bundle("new"))


def test_images_of_runc_with_external_mounts_found_by_criu(machine: Machine) -> None:
    taken = machine.checkpoints / "c"
    old = by_runc(machine, taken, "external mnt[]\nenable-external-masters\n")
    old.path.rename(machine.path / "gone")
    restore(machine, taken, machine.bundle("new"))
    assert inside(machine, "/etc/hostname") == "new\n"


def test_images_of_criu_itself_without_keys_and_descriptors(machine: Machine) -> None:
    taken = machine.checkpoints / "c"
    taken.mkdir()
    old = machine.bundle("old")
    machine.start("old", old)
    pid = str(machine.state_of("old")["pid"])
    options = ["--external", "mnt[]", "--file-locks", "--manage-cgroups=soft", "-v4", "-o", "dump.log"]
    done = subprocess.run(
        ["criu", "dump", "--tree", pid, "--images-dir", str(taken), *options],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )
    machine.put_node_back()
    assert done.returncode == 0, (taken / "dump.log").read_text()[-3000:]
    assert not (taken / "descriptors.json").exists()
    machine.runc("delete", "--force", "old").ok()
    old.path.rename(machine.path / "gone")
    restore(machine, taken, machine.bundle("new"))
    assert inside(machine, "/etc/hostname") == "new\n"
    assert inside(machine, "/var/run/secrets/token/token") == "token of new\n"


@pytest.mark.parametrize("where", ["annotation", "named after the container", "restore verb"])
def test_an_archive_as_kubelet_has_containerd_write_it(machine: Machine, where: str) -> None:
    images = machine.path / "images"
    by_runc(machine, images)
    base = machine.checkpoints / "ns/first"
    base.mkdir(parents=True)
    name = "app.tar" if where == "named after the container" else "checkpoint-pod_ns-app-2026.tar"
    diff = tar({"etc/added": b"added", "bin/.wh.true": b""})
    files = {"rootfs-diff.tar": diff, "status.dump": b"{}", "container.log": b"", "status": b"", **DUMPS}
    path = archive(base / name, images, files)
    before = path.read_bytes()
    if where == "restore verb":
        new = machine.bundle("new")
        machine.grit("restore", "-d", "--image-path", str(path), "-b", str(new.path), "new").ok()
        machine.counts(new)
    else:
        new = _annotated(machine, path if where == "annotation" else base)
        _create(machine, new)
    assert inside(machine, "/etc/added") == "added"
    assert not (new.path / "rootfs/bin/true").is_symlink()
    assert path.read_bytes() == before
    assert not machine.unpacked.exists()


@pytest.mark.needs("zstd")
def test_an_archive_of_podman_with_what_it_deleted_and_dev_shm(machine: Machine) -> None:
    images = machine.path / "images"
    by_runc(machine, images)
    files = {
        "rootfs-diff.tar": tar({"etc/added": b"added"}),
        "deleted.files": json.dumps(["/bin/true", "bin/trap"]).encode(),
        "devshm-checkpoint.tar": tar({"segment": b"shared"}),
        "network.status": b"[]",
        **DUMPS,
    }
    plain = archive(machine.path / "exported.tar", images, files)
    path = machine.checkpoints / "exported.tar.zst"  # podman's default
    subprocess.run(["zstd", "-q", "--rm", "-o", str(path), str(plain)], check=True)
    new = machine.bundle("new")
    shm = new.path / "pods/shm"
    shm.mkdir()
    mount(new, "/dev/shm", shm)
    ran = machine.grit("restore", "-d", "--image-path", str(path), "-b", str(new.path), "new").ok()
    assert ran.code == 0
    machine.counts(new)
    assert (shm / "segment").read_bytes() == b"shared"
    assert not any((new.path / "rootfs/bin" / name).is_symlink() for name in ("true", "trap"))


def folder(machine: Machine) -> Path:
    """GRIT's folder: <base>/<container>/{checkpoint,rootfs-diff.tar,container.log}."""
    container = machine.checkpoints / "ns/first/app"
    container.mkdir(parents=True)
    by_runc(machine, container / "checkpoint")
    (container / "rootfs-diff.tar").write_bytes(gzip.compress(tar({"etc/added": b"added"})))
    (container / "container.log").write_bytes(b"")
    return container


def test_a_folder_of_grit_s_that_has_arrived(machine: Machine) -> None:
    container = folder(machine)
    (container.parent / "download-state").touch()
    before = tree(container)
    new = _annotated(machine, container.parent)
    _create(machine, new)
    assert inside(machine, "/etc/added") == "added"
    assert tree(container) == before


def test_a_folder_of_grit_s_that_may_still_be_copied_is_refused(machine: Machine) -> None:
    container = folder(machine)
    new = _annotated(machine, container.parent)
    ran = machine.grit("create", "--bundle", str(new.path), "new")
    assert ran.code == 1
    assert "is incomplete: it has no grit.json" in ran.err
    machine.configure(require_manifest=False)
    _create(machine, new)


def test_an_archive_of_another_container_of_the_pod_is_refused(machine: Machine) -> None:
    images = machine.path / "images"
    by_runc(machine, images)
    path = archive(machine.checkpoints / "a.tar", images, DUMPS)
    new = _annotated(machine, path, name="sidecar")
    ran = machine.grit("create", "--bundle", str(new.path), "new")
    assert ran.code == 1
    assert "holds a container 'app', and this one is 'sidecar'" in ran.err
    assert not machine.unpacked.exists()


def test_a_hostile_archive_leaves_nothing_anywhere(machine: Machine) -> None:
    images = machine.path / "images"
    by_runc(machine, images)
    path = archive(machine.checkpoints / "a.tar", images, {**DUMPS, "checkpoint/../../evil": b"x"})
    new = machine.bundle("new")
    before = tree(machine.path)
    ran = machine.grit("restore", "-d", "--image-path", str(path), "-b", str(new.path), "new")
    assert ran.code == 1
    assert "leads out of it" in ran.err
    (machine.path / "log.json").unlink()
    shutil.rmtree(machine.logs)  # the record of the call
    machine.state.rmdir()
    assert tree(machine.path) == before


def test_an_archive_whose_mounts_don_t_fit_is_refused_and_removed(machine: Machine) -> None:
    images = machine.path / "images"
    by_runc(machine, images)
    path = archive(machine.checkpoints / "a.tar", images, DUMPS)
    new = machine.bundle("new")
    new.edit(lambda config: config["mounts"].pop())
    ran = machine.grit("restore", "-d", "--image-path", str(path), "-b", str(new.path), "new")
    assert ran.code == 1
    assert "1 problem" in ran.err
    assert not machine.unpacked.exists()


@pytest.mark.timeout(300)
def test_a_kill_at_every_third_step_leaves_nothing_unpacked(machine: Machine) -> None:
    images = machine.path / "images"
    by_runc(machine, images)
    path = archive(machine.checkpoints / "a.tar", images, DUMPS)
    new = machine.bundle("new")
    args = ("restore", "-d", "--image-path", str(path), "-b", str(new.path), "new")
    (machine.logs / "operations").mkdir(parents=True)  # each call takes the same steps then
    machine.grit(*args, GRIT_TEST_STEPS=str(machine.path / "steps")).ok()
    machine.grit("delete", "--force", "new").ok()
    for step in range(1, int((machine.path / "steps").read_text()) + 1, 3):
        assert machine.grit(*args, GRIT_TEST_KILL_AT=str(step)).code == -9
        machine.grit("recover").ok()
        assert not machine.unpacked.exists(), f"step {step}"
        machine.grit("delete", "--force", "new")
        (new.data / "out").write_text("")


def test_what_was_unpacked_before_a_reboot_is_in_nobody_s_way(machine: Machine) -> None:
    images = machine.path / "images"
    by_runc(machine, images)
    path = archive(machine.checkpoints / "a.tar", images, DUMPS)
    new = machine.bundle("new")
    args = ("restore", "-d", "--image-path", str(path), "-b", str(new.path), "new")
    (machine.logs / "operations").mkdir(parents=True)  # each call takes the same steps then
    machine.grit(*args, GRIT_TEST_STEPS=str(machine.path / "steps")).ok()
    machine.grit("delete", "--force", "new").ok()
    half = int((machine.path / "steps").read_text()) // 2
    assert machine.grit(*args, GRIT_TEST_KILL_AT=str(half)).code == -9
    assert machine.unpacked.exists()
    saved = machine.path / "saved"
    machine.unpacked.rename(saved)
    machine.grit("recover").ok()
    saved.rename(machine.unpacked)  # the journal is gone, as after a reboot
    (new.data / "out").write_text("")
    machine.grit(*args).ok()
    machine.counts(new)
    shutil.rmtree(machine.unpacked, ignore_errors=True)


def _export(machine: Machine, taken: Path, target: Path, *options: str) -> None:
    machine.grit("export", *options, str(taken), str(target)).ok()


@pytest.mark.needs("zstd")
@pytest.mark.parametrize("compress", ["none", "zstd"])
def test_an_export_is_restored_like_what_it_was_made_of(machine: Machine, compress: str) -> None:
    machine.start("old", machine.bundle("old"))
    taken = checkpoint(machine)
    before = tree(taken)
    target = machine.checkpoints / "exported.tar"
    _export(machine, taken, target, "--compress", compress)
    assert (target.read_bytes()[:4] == b"\x28\xb5\x2f\xfd") is (compress == "zstd")
    assert tree(taken) == before
    new = _annotated(machine, target)
    _create(machine, new)
    assert machine.grit("export", str(taken), str(target)).code == 1, "an archive is never overwritten"


@pytest.mark.parametrize("fault", ["no zstd", "no room"])
def test_a_compressed_export_that_fails_leaves_no_file(machine: Machine, fault: str) -> None:
    machine.start("old", machine.bundle("old"))
    taken = checkpoint(machine)
    place = machine.path / "place"
    place.mkdir()
    more = {}
    if fault == "no zstd":
        more = {"PATH": str(place)}
    else:
        machine.shell("mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(place))
        machine.mounted.append(place)
    failed = machine.grit("export", "--compress", "zstd", str(taken), str(place / "exported.tar.zst"), **more)
    assert failed.code == 1
    assert ("there is no program zstd" if fault == "no zstd" else "zstd exited with") in failed.err
    assert list(place.iterdir()) == []


@pytest.mark.needs("checkpointctl")
def test_checkpointctl_reads_an_export(machine: Machine) -> None:
    old = machine.bundle("old")
    old.annotate(type="container", name="app", namespace="ns")
    machine.start("old", old)
    taken = checkpoint(machine)
    target = machine.path / "exported.tar"
    _export(machine, taken, target)
    program = str(CHECKPOINTCTL)
    shown = subprocess.run([program, "show", str(target)], capture_output=True, text=True, check=False, timeout=60)
    assert shown.returncode == 0, shown.stderr
    assert "app" in shown.stdout
    argv = [program, "inspect", "--ps-tree", "--stats", str(target)]
    inspected = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert inspected.returncode == 0, inspected.stderr
    assert "sh" in inspected.stdout
    os.unlink(target)
