"""Bad input gets one clear line and changes nothing: the source runs on, the checkpoint and the bundle stay as they
were.
"""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.machine import Bundle, Machine, Ran, tree

pytestmark = pytest.mark.needs("root", "runc", "criu", "busybox")


@pytest.fixture
def images(machine: Machine) -> Path:
    """A good checkpoint of a container that is gone."""
    machine.start("old", machine.bundle("old"))
    path = machine.checkpoints / "ns/first/app/checkpoint"
    machine.grit("checkpoint", "--image-path", str(path), "old").ok()
    return path


def _refused(machine: Machine, bundle: Bundle, images: Path, verb: str = "restore") -> str:
    """Try a restore that must fail, and return its one line."""
    before = tree(bundle.path), tree(images) if images.exists() else None, machine.containers()
    flags = ("-d", "--image-path", str(images)) if verb == "restore" else ()
    ran = machine.grit(verb, *flags, "--bundle", str(bundle.path), "new")
    assert ran.code == 1
    assert ran.err
    assert (tree(bundle.path), tree(images) if images.exists() else None, machine.containers()) == before
    assert machine.leftovers() == []
    return ran.err


def _annotated(machine: Machine, **annotations: str) -> Bundle:
    bundle = machine.bundle("new")
    bundle.annotate(type="container", name="app", namespace="ns", **annotations)
    return bundle


def test_no_such_checkpoint(machine: Machine) -> None:
    path = machine.checkpoints / "nowhere"
    assert f"no such checkpoint: {path}" in _refused(machine, machine.bundle("new"), path)


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [
        ({"checkpoint": "{roots}/ns/none"}, "no such checkpoint: {roots}/ns/none/app/checkpoint"),
        ({"restore_name": "none"}, "no such checkpoint: annotation grit.dev/restore-name=none"),
        ({"restore_name": "../first"}, "cannot be part of a path"),
        ({"checkpoint": "/etc"}, "lies outside the checkpoint roots"),
        ({"checkpoint": "{roots}/../elsewhere"}, "lies outside the checkpoint roots"),
        ({"checkpoint": "relative"}, "lies outside the checkpoint roots"),
        ({"checkpoint": "{roots}/ns/first", "restore_name": "first"}, "both grit.dev/checkpoint and"),
        ({"checkpoint": "{roots}/ns/link"}, "is reached through a symbolic link"),
    ],
)
def test_an_annotation_that_leads_nowhere_or_out(
    machine: Machine, images: Path, annotations: dict[str, str], expected: str
) -> None:
    (machine.checkpoints / "ns/link").symlink_to("first")
    roots = str(machine.checkpoints)
    bundle = _annotated(machine, **{k: v.format(roots=roots) for k, v in annotations.items()})
    assert expected.format(roots=roots) in _refused(machine, bundle, images, "create")


def test_a_checkpoint_without_a_manifest_is_refused_by_annotation(machine: Machine, images: Path) -> None:
    (images / "grit.json").unlink()
    said = _refused(machine, _annotated(machine, restore_name="first"), images, "create")
    assert f"checkpoint {images} is incomplete: it has no grit.json" in said


def test_a_checkpoint_that_is_being_written_is_refused(machine: Machine, images: Path) -> None:
    (images / "grit.json").unlink()
    (images / ".grit-partial").mkdir()
    bundle = machine.bundle("new")
    ran = machine.grit("restore", "-d", "--image-path", str(images), "--bundle", str(bundle.path), "new")
    assert "is incomplete" in ran.err
    (images / ".grit-partial").rmdir()


def _truncate(name: str) -> Callable[[Path], None]:
    def damage(images: Path) -> None:
        file = next(images.glob(name))
        os.truncate(file, file.stat().st_size - 3)

    return damage


def _foreign(images: Path) -> None:
    (images / "pstree.img").write_bytes(b"not an image of CRIU's at all")


def _another_kind(images: Path) -> None:
    (images / "pstree.img").write_bytes(next(images.glob("mountpoints-*.img")).read_bytes())


@pytest.mark.parametrize("manifest", [True, False], ids=["with-manifest", "plain"])
@pytest.mark.parametrize(
    "damage",
    [_truncate("mountpoints-*.img"), _truncate("pstree.img"), _truncate("inventory.img"), _foreign, _another_kind],
    ids=["mountpoints", "pstree", "inventory", "foreign", "another-kind"],
)
def test_a_damaged_image_is_named(
    machine: Machine, images: Path, damage: Callable[[Path], None], manifest: bool
) -> None:
    damage(images)
    if not manifest:
        (images / "grit.json").unlink()
    said = _refused(machine, machine.bundle("new"), images)
    assert ".img" in said
    assert "damaged" in said or "is a MNTS image" in said


def test_truncated_pages_are_found_before_anything_is_touched(machine: Machine, images: Path) -> None:
    _truncate("pages-*.img")(images)
    said = _refused(machine, machine.bundle("new"), images)
    assert "bytes instead of" in said


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda m: m.update(format=99), "has format 99"),
        (lambda m: m.pop("format"), "has no format number"),
        (lambda m: m.pop("files"), "is damaged"),
        (lambda m: m["files"].append({"name": "../escape", "bytes": 1}), "lists a file outside"),
        (lambda m: m["machine"].update(architecture="s390x"), "was taken on s390x"),
    ],
)
def test_a_manifest_that_cannot_be_right(
    machine: Machine, images: Path, change: Callable[[dict[str, object]], object], expected: str
) -> None:
    manifest = json.loads((images / "grit.json").read_text())
    change(manifest)
    (images / "grit.json").write_text(json.dumps(manifest))
    assert expected in _refused(machine, machine.bundle("new"), images)


def test_every_missing_destination_is_named_at_once(machine: Machine, images: Path) -> None:
    bundle = machine.bundle("new")
    gone = ("/data", "/etc/hosts")
    bundle.edit(lambda c: c.update(mounts=[m for m in c["mounts"] if m["destination"] not in gone]))
    said = _refused(machine, bundle, images)
    assert "2 problems" in said
    for destination in gone:
        assert f"mount {destination} is in the checkpoint and not in the new container's config.json" in said


def test_every_missing_source_is_named_at_once(machine: Machine, images: Path) -> None:
    bundle = machine.bundle("new")
    sources = [m["source"] for m in bundle.config()["mounts"] if m["destination"] in ("/etc/hosts", "/etc/hostname")]
    for source in sources:
        Path(source).unlink()
    said = _refused(machine, bundle, images)
    for source in sources:
        assert f"the source {source} of mount /etc/host" in said


@pytest.mark.parametrize("content", [None, "{", "[]", "\x00"])
def test_a_bundle_without_a_readable_config(machine: Machine, images: Path, content: str | None) -> None:
    bundle = machine.bundle("new")
    config = bundle.path / "config.json"
    config.unlink() if content is None else config.write_text(content)
    bundle.written = (content or "").encode()
    said = _refused(machine, bundle, images)
    assert "config.json" in said
    assert ("not found" if content is None else "JSON") in said


def test_the_id_of_a_container_that_exists(machine: Machine, images: Path) -> None:
    other = machine.bundle("other")
    machine.start("new", other)
    assert "container with given ID already exists" in _refused(machine, machine.bundle("new"), images)
    machine.counts(other)


def test_a_pid_file_that_cannot_be_written(machine: Machine, images: Path) -> None:
    bundle = machine.bundle("new")
    pid_file = str(machine.path / "no/such/pid")
    flags = ("-d", "--image-path", str(images), "--pid-file", pid_file)
    ran = machine.grit("restore", *flags, "--bundle", str(bundle.path), "new")
    assert ran.code == 1
    assert "No such file or directory" in ran.err
    assert pid_file.rpartition("/")[0] in ran.err
    assert machine.containers() == []
    assert bundle.numbers() == []


def test_a_checkpoint_of_what_waits_for_start(machine: Machine, images: Path) -> None:
    new = _annotated(machine, restore_name="first")
    machine.grit("create", "--bundle", str(new.path), "new").ok()
    ran = machine.grit("checkpoint", "--image-path", str(machine.path / "x"), "new")
    assert ran.code == 1
    assert "container new cannot be checkpointed in created state" in ran.err
    machine.grit("start", "new").ok()
    machine.counts(new)


def test_a_cgroup_that_somebody_else_uses(machine: Machine, images: Path) -> None:
    """Undoing a failed restore empties the container's cgroups: they must have been ours."""
    unified = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    cgroup = Path("/sys/fs/cgroup") / ("" if unified else "pids") / "grit-test-somebody"
    cgroup.mkdir()
    somebody = subprocess.Popen(["sleep", "60"])
    (cgroup / "cgroup.procs").write_text(str(somebody.pid))
    bundle = machine.bundle("new")
    bundle.edit(lambda c: c["linux"].update(cgroupsPath="/grit-test-somebody"))
    said = _refused(machine, bundle, images)
    assert f"its cgroup {cgroup} is in use" in said
    assert somebody.poll() is None
    somebody.kill()
    somebody.wait()
    cgroup.rmdir()


@pytest.mark.parametrize("verb", ["checkpoint", "restore"])
@pytest.mark.parametrize("kind", ["missing", "not-executable", "nameless"])
def test_a_downstream_that_cannot_be_executed(machine: Machine, images: Path, verb: str, kind: str) -> None:
    program = machine.path / "downstream"
    if kind == "not-executable":
        program.write_text("#!/bin/sh\n")
    machine.configure(downstream="no-such-runtime-anywhere" if kind == "nameless" else str(program))
    bundle = machine.bundle("new")
    ran = machine.grit(
        verb, "--image-path", str(images), *(["-b", str(bundle.path)] if verb == "restore" else []), "new"
    )
    assert ran.code == 1
    assert "the downstream runtime" in ran.err
    assert "cannot be executed" in ran.err
    assert machine.leftovers() == []


def test_a_container_that_does_not_exist_or_does_not_run(machine: Machine) -> None:
    ran = machine.grit("checkpoint", "--image-path", str(machine.path / "x"), "none")
    assert ran.code == 1
    assert "does not exist" in ran.err
    bundle = machine.bundle("created")
    machine.runc("create", "--bundle", str(bundle.path), "created").ok()
    ran = machine.grit("checkpoint", "--image-path", str(machine.path / "x"), "created")
    assert ran.code == 1
    assert "container created cannot be checkpointed in created state" in ran.err
    assert not (machine.path / "x").exists()


@pytest.fixture
def small_disk(machine: Machine) -> Iterator[Path]:
    """A file system that a dump fills."""
    path = machine.path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "none", str(path)], check=True)
    yield path
    subprocess.run(["umount", str(path)], check=True)


def _runs_on(machine: Machine, bundle: Bundle, images: Path) -> Ran:
    ran = machine.grit("checkpoint", "--image-path", str(images), "old")
    assert ran.code == 1
    machine.counts(bundle)
    assert not images.exists()
    assert [str(p) for p in machine.state.rglob("*")] == []
    return ran


@pytest.mark.parametrize("transport", ["parallel", "criu"])
def test_a_disk_that_fills_costs_nothing(machine: Machine, small_disk: Path, transport: str) -> None:
    machine.configure(memory={"transport": transport})
    bundle = machine.bundle("old")
    machine.start("old", bundle)
    assert "No space left on device" in _runs_on(machine, bundle, small_disk / "a/b").err
    assert list(small_disk.iterdir()) == []
    if transport == "criu":
        assert [p.name.endswith("-old-dump.log") for p in machine.logs.glob("*.log")] == [True]


def test_a_read_only_disk_costs_nothing(machine: Machine, small_disk: Path) -> None:
    bundle = machine.bundle("old")
    machine.start("old", bundle)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    said = _runs_on(machine, bundle, small_disk / "images").err
    assert f"cannot write the checkpoint to {small_disk / 'images'}: Read-only file system" in said


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nonsense: 1\n", "'nonsense' was unexpected"),
        ("timeouts: {lock: -1}\n", "timeouts.lock"),
        ("downstream: [a\n", "not valid YAML"),
        ("- a\n", "holds no mapping"),
        ("downstream: runc\ndownstream: crun\n", "stands twice"),
        ("criu: {dump: {log-file: 'a#b'}}\n", "criu.dump.log-file"),
    ],
)
def test_a_configuration_that_is_wrong_says_where(machine: Machine, text: str, expected: str) -> None:
    machine.config.write_text(text)
    ran = machine.grit("checkpoint", "x")
    assert ran.code == 1
    assert str(machine.config) in ran.err
    assert expected in ran.err


@pytest.mark.parametrize("args", [("--nonsense", "x"), (), ("../x",), ("--image-path",)])
def test_arguments_that_make_no_sense(machine: Machine, args: tuple[str, ...]) -> None:
    ran = machine.grit("checkpoint", *args)
    assert ran.code == 1
    assert ran.err.startswith("checkpoint: ")


def test_a_failing_criu_is_quoted_and_its_log_kept(machine: Machine, images: Path) -> None:
    """A file that a process had open is gone from the new rootfs: CRIU says which."""
    (images / "grit.json").unlink()
    bundle = machine.bundle("new")
    (bundle.path / "rootfs/bin/busybox").unlink()
    before = bundle.config()
    ran = machine.grit("restore", "-d", "--image-path", str(images), "-b", str(bundle.path), "new")
    assert ran.code == 1
    assert "Can't open file bin/busybox" in ran.err
    (log,) = machine.logs.glob("*.log")
    assert str(log) in ran.err
    assert "busybox" in log.read_text()
    assert bundle.config() == before
    assert machine.containers() == []
    assert machine.leftovers() == []
