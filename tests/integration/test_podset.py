"""The containers of a pod as one set: killed at any step, and with CUDA by the SIMULATED driver."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.integration.machine import Bundle, Machine
from tests.simulated.driver import SimulatedGpu

pytestmark = [pytest.mark.needs("root", "runc", "criu", "busybox"), pytest.mark.timeout(300)]
NAMES = ("front", "back")


def _of_pod(bundle: Bundle, name: str) -> Bundle:
    bundle.annotate(type="container", name=name, namespace="ns")
    bundle.edit(lambda config: config["annotations"].update({"io.kubernetes.cri.sandbox-id": "s1"}))
    return bundle


def _whole(path: Path) -> bool:
    """A set that is there has everything of every container."""
    if not path.exists():
        return False
    for name in NAMES:
        images = path / name / "checkpoint"
        listed: list[dict[str, Any]] = json.loads((images / "grit.json").read_text())["files"]
        sizes = {entry["name"]: entry["bytes"] for entry in listed}
        assert sizes == {file.name: file.stat().st_size for file in images.iterdir() if file.name != "grit.json"}
    return True


def test_a_set_killed_at_any_step_is_whole_or_not_there_and_costs_nothing(machine: Machine) -> None:
    bundles = {name: _of_pod(machine.bundle(f"b-{name}"), name) for name in NAMES}
    for name, bundle in bundles.items():
        machine.start(f"c-{name}", bundle)
    ids = [f"c-{name}" for name in NAMES]
    file = machine.path / "steps"
    machine.grit("capture", "--name", "probe", *ids, GRIT_TEST_STEPS=str(file)).ok()
    steps, killed = int(file.read_text()), 0
    # Every ninth: each takes a quarter of a second, and kills of one container are tried at all (test_kill.py).
    for step in range(1, steps + 1, 9):
        stop = ["--stop"] if step % 2 else []
        ran = machine.grit("capture", "--name", f"s{step}", *stop, *ids, GRIT_TEST_KILL_AT=str(step))
        assert ran.code in (-9, 0), f"step {step}: {ran}"
        killed += ran.code == -9
        assert "could not" not in machine.grit("recover").ok().out
        assert machine.leftovers() == [], f"step {step}"
        whole = _whole(machine.checkpoints / f"ns/s{step}")
        for name in NAMES:
            if machine.status(f"c-{name}") == "gone":
                assert whole, f"step {step}: {name} has ended, and there is no set"
                assert stop
                images = machine.checkpoints / f"ns/s{step}/{name}/checkpoint"
                machine.grit(
                    "restore", "-d", "--image-path", str(images), "-b", str(bundles[name].path), f"c-{name}"
                ).ok()
            machine.counts(bundles[name])
    assert killed > 6
    machine.grit("capture", "--name", "s1", *ids).ok()
    assert _whole(machine.checkpoints / "ns/s1")


@pytest.mark.needs("cc")
@pytest.mark.parametrize("fault", ["", "Lock 304", "Checkpoint 999"])
def test_containers_with_cuda_are_one_set(gpu: SimulatedGpu, fault: str) -> None:
    olds = {}
    for name in NAMES:
        olds[name] = _of_pod(gpu.bundle(f"b-{name}", two=name == "back"), name)
        gpu.machine.runc("run", "-d", "--bundle", str(olds[name].path), f"c-{name}").ok()
        gpu.goes_on(olds[name])
    if fault:
        gpu.faults(fault)
        failed = gpu.grit("capture", "--name", "set", "c-front", "c-back")
        gpu.faults()
        assert failed.code == 1
        assert not (gpu.machine.checkpoints / "ns").exists()
        for name in NAMES:
            assert gpu.machine.status(f"c-{name}") == "running"
            gpu.goes_on(olds[name])
        return
    gpu.grit("capture", "--name", "set", "--stop", "c-front", "c-back").ok()
    assert gpu.used() == 0
    assert _whole(gpu.machine.checkpoints / "ns/set")
    for name in NAMES:
        new = _of_pod(gpu.copy_of(olds[name], f"n-{name}"), name)
        gpu.grit("restore-into", "--name", "set", str(new.path)).ok()
        gpu.goes_on(new)
