"""Looking at real checkpoints, of every kind: real runc and CRIU made them."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.integration.machine import Machine, Ran, tree
from tests.integration.test_kinds import DUMPS, archive, by_runc, folder, tar
from tests.integration.test_mounts import checkpoint
from tests.simulated.driver import SimulatedGpu

pytestmark = pytest.mark.needs("root", "runc", "criu", "busybox")


def _inspect(machine: Machine, path: Path, *flags: str) -> dict[str, Any]:
    """What is said as JSON; nothing is left, and nothing changed."""
    places = [place for place in (path, machine.state) if place.is_dir()]
    before = [tree(place) for place in places]
    ran = machine.grit("inspect", *flags, "--json", str(path)).ok()
    assert [tree(place) for place in places] == before
    assert not machine.unpacked.exists()
    document: dict[str, Any] = json.loads(ran.out)
    assert document["problems"] == []
    return document


def _counter(document: dict[str, Any], *, command: bool) -> None:
    first = document["processes"][0]
    assert (first["pid"], first["name"], first["program"]) == (1, "sh", "/bin/busybox")
    assert first["command"].startswith("/bin/sh -c ") is command
    assert 0 < first["saved"] <= first["mapped"]
    mounts = {mount["destination"]: mount for mount in document["mounts"]}
    assert mounts["/"]["kind"] == "rootfs"
    assert mounts["/proc"]["kind"] == "file system"
    assert {"/data", "/etc/hosts", "/var/run/secrets/token"} <= mounts.keys()
    assert [file["number"] for file in document["open_files"] if 1 in file["pids"]][:3] == [0, 1, 2]


def _own(machine: Machine) -> Path:
    bundle = machine.bundle("old")
    bundle.annotate(type="container", name="app", namespace="ns")
    machine.start("old", bundle)
    return checkpoint(machine)


def test_a_checkpoint_of_ours(machine: Machine) -> None:
    taken = _own(machine)
    found = _inspect(machine, taken, "--check")
    _counter(found, command=True)
    assert (found["state"], found["kind"], found["compared"]) == ("complete", "grit-runtime's", True)
    assert (found["container"]["id"], found["container"]["name"]) == ("old", "app")
    assert {"grit-runtime", "downstream", "criu", "kernel"} <= found["versions"].keys()
    kinds = {mount["destination"]: mount["kind"] for mount in found["mounts"]}
    assert (kinds["/data"], kinds["/var/run/secrets/token"], kinds["/etc/hosts"]) == ("empty-dir", "projected", "bind")
    assert "spec" not in found
    text = machine.grit("inspect", "--files", "--mounts", "--memory", str(taken)).ok().out
    assert "/bin/sh -c 'i=0; while" in text
    assert "/data: empty-dir from /" in text
    assert "[heap]" in text
    assert "\x1b" not in text


def test_plain_images_of_runc(machine: Machine) -> None:
    taken = machine.checkpoints / "c"
    by_runc(machine, taken)
    (taken / "dump.log").write_bytes((machine.path / "w/dump.log").read_bytes())
    found = _inspect(machine, taken, "--memory")
    _counter(found, command=False)
    assert found["state"] == "unsaid"
    assert found["versions"].keys() >= {"criu", "kernel"}, "by CRIU's log"
    mapped = found["processes"][0]["mappings"]
    assert sum(mapping["saved"] for mapping in mapped) == found["processes"][0]["saved"]


def test_an_export(machine: Machine) -> None:
    taken, target = _own(machine), machine.path / "exported.tar"
    machine.grit("export", str(taken), str(target)).ok()
    found = _inspect(machine, target, "--check")
    _counter(found, command=True)
    assert (found["state"], found["compared"]) == ("complete", True)
    same = machine.grit("diff", str(taken), str(target)).ok()
    assert same.out == ""
    packed = machine.path / "exported.tar.gz"
    packed.write_bytes(subprocess.run(["gzip", "-c", target], check=True, capture_output=True).stdout)
    _counter(_inspect(machine, packed), command=True)
    assert machine.grit("inspect", "--check", str(packed)).code == 1


@pytest.mark.parametrize("compressed", ["", "gzip", "zstd"])
@pytest.mark.needs("zstd")
def test_an_archive_of_kubelet_s(machine: Machine, compressed: str) -> None:
    images = machine.path / "images"
    by_runc(machine, images)
    files = {"rootfs-diff.tar": tar({"etc/added": b"added"}), "container.log": b"", **DUMPS}
    path = archive(machine.path / "checkpoint-pod_ns-app-2026.tar", images, files)
    if compressed:
        path.write_bytes(subprocess.run([compressed, "-c", path], check=True, capture_output=True).stdout)
    found = _inspect(machine, path)
    _counter(found, command=False)
    assert (found["state"], found["container"]["name"]) == ("complete", "app")
    assert [part["name"] for part in found["contents"]] == ["rootfs-diff.tar", "container.log"]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    cut = machine.grit("inspect", str(path))
    assert cut.code == 1
    assert "is damaged: " in cut.out or "is damaged: " in cut.err


def test_a_folder_of_grit_s(machine: Machine) -> None:
    container = folder(machine)
    found = _inspect(machine, container)
    _counter(found, command=False)
    assert (found["state"], found["kind"]) == ("unsaid", "a folder as GRIT writes it")
    (container.parent / "download-state").touch()
    assert _inspect(machine, container / "checkpoint")["state"] == "complete"
    ran = machine.grit("inspect", str(container.parent))
    assert ran.code == 1
    assert "it holds app: name one of them" in ran.err


@pytest.mark.needs("cc")
@pytest.mark.timeout(300)
def test_a_simulated_gpu(gpu: SimulatedGpu) -> None:
    gpu.configure(mode="driver")
    gpu.start("old")
    gpu.capture().ok()
    found = _inspect(gpu.machine, gpu.machine.checkpoints / "c")
    (process,) = [process for process in found["processes"] if process["cuda"]]
    assert [size >> 20 for size in process["gpu"].values()] == [64]
    assert [device["used"] >> 20 for device in found["gpus"] if device["used"]] == [64]
    text = gpu.machine.grit("inspect", str(gpu.machine.checkpoints / "c")).ok().out
    assert "CUDA: 64.0 MiB on " in text


@pytest.mark.parametrize("wrong", ["gone", "short", "altered", "manifest"])
def test_a_damaged_checkpoint_is_shown_as_far_as_it_can_be(machine: Machine, wrong: str) -> None:
    taken = _own(machine)
    pages = next(taken.glob("pages-*.img"))
    if wrong == "gone":
        pages.unlink()
    elif wrong == "short":
        os.truncate(pages, pages.stat().st_size - 4096)
    elif wrong == "altered":
        data = pages.read_bytes()
        pages.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    else:
        (taken / "grit.json").write_text('{"format": 1')
    flags = ("--check",) if wrong == "altered" else ()
    ran = machine.grit("inspect", *flags, "--json", str(taken))
    assert ran.code == 1
    found = json.loads(ran.out)
    assert found["state"] == "damaged"
    assert found["processes"][0]["name"] == "sh"
    said = {"gone": "is missing", "short": "bytes instead of", "altered": "by its checksum", "manifest": "is damaged"}
    assert any(said[wrong] in problem for problem in found["problems"])
    if wrong == "manifest":
        (taken / "grit.json").unlink()


def test_a_difference_is_told(machine: Machine) -> None:
    taken = _own(machine)
    other = machine.path / "other"
    subprocess.run(["cp", "-a", taken, other], check=True)
    assert machine.grit("diff", str(taken), str(other)).ok().out == ""
    manifest = json.loads((other / "grit.json").read_text())
    manifest["spec"]["process"]["env"].append("ADDED=1")
    manifest["versions"]["criu"] = "9.9"
    (other / "grit.json").write_text(json.dumps(manifest))
    ran = machine.grit("diff", "--json", str(taken), str(other))
    assert ran.code == 1
    told = {change["section"]: change["after"] for change in json.loads(ran.out)["differences"]}
    assert told == {"versions": "9.9", "config.json": "ADDED=1"}
    os.truncate(other / "pages-1.img", 0)
    broken = machine.grit("diff", str(taken), str(other))
    assert (broken.code, "is damaged" in broken.err) == (2, True)
    assert machine.grit("diff", str(taken), str(machine.path / "none")).code == 2


def _limited(machine: Machine, path: Path) -> tuple[Ran, int]:
    """An inspection in a process that tells how many bytes it read."""
    program = (
        "import sys; from grit_runtime.__main__ import main; code = main(['verb', '-', 'x', 'inspect', sys.argv[1]]);"
        "print(open('/proc/self/io').read().split()[1], file=sys.stderr); sys.exit(code)"
    )
    argv = [sys.executable, "-c", program, str(path)]
    done = subprocess.run(argv, env=machine.environment(), capture_output=True, text=True, check=False, timeout=60)
    return Ran(code=done.returncode, out=done.stdout, err=done.stderr), int(done.stderr.split()[-1])


@pytest.mark.parametrize("packed", [False, True])
def test_of_thirty_gibibytes_no_page_is_read(machine: Machine, packed: bool) -> None:
    taken = machine.checkpoints / "c"
    by_runc(machine, taken)
    _, before = _limited(machine, taken)
    os.truncate(taken / "pages-1.img", 30 << 30)  # sparse; a directory's sizes are all that is looked at
    path = taken
    if packed:
        path = machine.path / "large.tar"
        sparse(path, taken)
    ran, read = _limited(machine, path)
    assert ran.code == (1 if packed else 0), ran.err
    assert "30.0 GiB" in ran.out
    assert read < before + (4 << 20)


def sparse(path: Path, images: Path) -> None:
    """A tar of the images whose pages take no room."""
    with tarfile.open(path, "w") as written:
        for file in sorted(images.iterdir(), key=lambda file: file.stat().st_size):
            entry = written.gettarinfo(file, f"checkpoint/{file.name}")
            if file.stat().st_size >> 30:
                written.addfile(entry)
                written.fileobj.seek(written.offset + entry.size)  # type: ignore[union-attr]
                written.offset += entry.size
            else:
                with file.open("rb") as stream:
                    written.addfile(entry, stream)
