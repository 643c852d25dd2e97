"""A container with data on a GPU: the plain chain (the driver's API, runc, CRIU) against grit-runtime, in one run; and
a model's first token after a restore against that of a cold start.

    python -m tests.bench.gpu [--gib 32] [--rounds 1]

For a machine with an NVIDIA GPU, PyTorch and transformers (docs/gpu.md). The images are on tmpfs. What came back is
compared with what was there. Memory is touched just before each measured call, if there is a C compiler, for a virtual
machine's host to back it.
"""

import argparse
import contextlib
import json
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from grit_runtime import names
from grit_runtime.cuda import api as cuda
from grit_runtime.cuda import processes
from grit_runtime.cuda.states import State
from grit_runtime.host import hugepages
from tests.bench import harness
from tests.gpu.conftest import GpuMachine, lines

TMPFS = Path("/dev/shm")
PATIENCE = 120.0


def timed(what: str, call: Callable[[], object], into: dict[str, float]) -> None:
    """Call, and note the seconds."""
    begun = time.monotonic()
    call()
    into[what] = time.monotonic() - begun


def plain(gpu: GpuMachine, api: cuda.Api, gib: int) -> tuple[dict[str, float], dict[str, float]]:
    """Checkpoint and restore by hand; seconds of each step."""
    conf = gpu.path / "criu.conf"
    empty = gpu.path / "no-plugins"
    empty.mkdir(exist_ok=True)
    conf.write_text(f"libdir {empty}\ntimeout 600\n")
    old = gpu.begin("old", "big", env=[f"GIB={gib}"])
    values = {line.partition(" ")[2] for line in lines(old)}
    images, pid = str(gpu.checkpoints / "plain"), gpu.state_of("old")["pid"]
    saved: dict[str, float] = {}
    back: dict[str, float] = {}
    touch(2 * gib)
    timed("cuda", lambda: processes.suspend(api, {pid: State.RUNNING}, lock_timeout=10, timeout=PATIENCE), saved)
    argv = ("checkpoint", "--image-path", images, "old")
    timed("runc", lambda: gpu.runc(*argv, CRIU_CONFIG_FILE=str(conf)).ok(), saved)
    new = gpu.gpu_bundle("new", "none")
    for file in old.data.iterdir():
        shutil.copy(file, new.data)
    argv = ("restore", "-d", "--image-path", images, "--bundle", str(new.path), "new")
    touch(gib)
    timed("runc", lambda: gpu.runc(*argv, CRIU_CONFIG_FILE=str(conf)).ok(), back)
    pid = gpu.state_of("new")["pid"]
    timed("cuda", lambda: processes.resume(api, {pid: State.RUNNING}, timeout=PATIENCE), back)
    gpu.goes_on(new, 2)
    assert {line.partition(" ")[2] for line in lines(new)} == values
    return saved, back


def ours(gpu: GpuMachine, gib: int) -> tuple[dict[str, float], dict[str, float]]:
    """The same by grit-runtime; the whole calls, and what their log says of the memory's part."""
    old = gpu.begin("old", "big", env=[f"GIB={gib}"])
    values = {line.partition(" ")[2] for line in lines(old)}
    saved: dict[str, float] = {}
    back: dict[str, float] = {}
    images = gpu.checkpoints / "of-old"
    touch(2 * gib)
    timed("all", lambda: gpu.capture("old"), saved)
    saved["of it memory"] = memory(gpu)
    made = json.loads((images / names.MANIFEST).read_text())
    saved.update({f"of it {name}": seconds for name, seconds in made["seconds"].items()})
    saved.update({f"of it CUDA's {name}": seconds for name, seconds in made["cuda"]["seconds"].items()})
    new = gpu.gpu_bundle("new", "none")
    for file in old.data.iterdir():
        shutil.copy(file, new.data)
    argv = ("restore", "-d", "--image-path", str(images), "--bundle", str(new.path), "new")
    touch(gib)
    timed("all", lambda: gpu.grit(*argv).ok(), back)
    back["of it memory"] = memory(gpu)
    found = re.search(r"is back: restore ([\d.]+) s, unlock ([\d.]+) s", (gpu.path / "log.json").read_text())
    back["of it CUDA's restore"], back["of it CUDA's unlock"] = (
        (float(word) for word in found.groups()) if found else (0, 0)
    )
    gpu.goes_on(new, 2)
    assert {line.partition(" ")[2] for line in lines(new)} == values
    return saved, back


def memory(gpu: GpuMachine) -> float:
    """The seconds that the last call's memory took by its log."""
    found = re.search(r"\d+ MiB of memory (?:written|filled) in ([\d.]+) s", (gpu.path / "log.json").read_text())
    return float(found[1]) if found else 0.0


@contextlib.contextmanager
def machine() -> Iterator[GpuMachine]:
    """A machine for one container and what is restored from it."""
    with tempfile.TemporaryDirectory(prefix="grit-bench-", dir=TMPFS) as name:
        made = GpuMachine(Path(name))
        try:
            yield made
        finally:
            made.clean()


def touch(gib: int) -> None:
    """See `harness.Place.touch`."""
    if shutil.which("cc"):
        with harness.place(sys.executable) as at:
            at.touch(gib << 30)


def first_token() -> None:
    """A model of 3 GB: from nothing, and from a checkpoint, both with its files in the page cache."""
    seconds: dict[str, float] = {}
    with machine() as gpu:
        weights = _run_model(gpu, "making", None, {})  # the file, and the page cache
        gpu.runc("delete", "--force", "making").ok()
        old = _run_model(gpu, "old", weights, seconds)
        images = gpu.capture("old")
        new = gpu.gpu_bundle("new", "none")
        shutil.copytree(old, new.data, dirs_exist_ok=True)
        there = len(lines(new))
        argv = ("restore", "-d", "--image-path", str(images), "--bundle", str(new.path), "new")

        def restore() -> None:
            timed("of it the call", lambda: gpu.grit(*argv).ok(), seconds)
            gpu.wait(lambda: len(lines(new)) > there, timeout=PATIENCE)

        timed("restore", restore, seconds)
    print("first token:", show(seconds), f"-> {seconds['cold start'] / seconds['restore']:.2f} times sooner")


def _run_model(gpu: GpuMachine, name: str, weights: Path | None, seconds: dict[str, float]) -> Path:
    """Start the model with its file moved there, and wait for its first token; where its files are."""
    bundle = gpu.gpu_bundle(name, "model")
    bundle.edit(lambda config: config["process"]["env"].append("MODEL=/data/model"))
    if weights:
        shutil.move(weights / "model", bundle.data)

    def run() -> None:
        gpu.runc("run", "-d", "--bundle", str(bundle.path), name).ok()
        gpu.wait(lambda: len(lines(bundle)) >= 1, timeout=PATIENCE)

    timed("cold start", run, seconds)
    return bundle.data


def show(seconds: dict[str, float]) -> str:
    """Steps and their seconds."""
    return ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items())


def main() -> None:
    """Print figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gib", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=1)
    args = parser.parse_args()
    print(f"transparent huge pages: {hugepages.setting()}; C compiler: {shutil.which('cc')}")
    for number in range(args.rounds):
        with machine() as gpu:
            api = cuda.connect(cuda.Settings())
            by_hand = plain(gpu, api, args.gib)
            api.close()
        with machine() as gpu:
            by_us = ours(gpu, args.gib)
        for verb, one, two in zip(("checkpoint", "restore"), by_hand, by_us, strict=True):
            print(f"{number + 1}. {args.gib} GiB, {verb}: plain {show(one)}; grit-runtime {show(two)}", end=" ")
            print(f"-> {sum(one.values()) / two['all']:.2f} times sooner", flush=True)
    first_token()


if __name__ == "__main__":
    main()
