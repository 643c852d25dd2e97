"""GPUs: which takes the place of which, what a container is given, what is missing. No GPU, no root."""

import json
from typing import Any

import pytest

from grit_runtime.cuda.gpus import Gpu, Node, Recorded, device_map, is_back
from grit_runtime.errors import CheckpointError
from grit_runtime.oci import bundle as bundles
from grit_runtime.workflow import cudaplan
from grit_runtime.workflow.cudaplan import Device

GIB = 1 << 30


def _gpu(number: int, *, uuid: str = "", name: str = "H100", memory: int = 80 * GIB, **more: Any) -> Gpu:
    return Gpu(index=number, uuid=uuid or f"GPU-{number}", name=name, minor=number, memory=memory, free=memory, **more)


def _old(number: int, *, used: int = GIB, name: str = "H100", visible: bool = True) -> Recorded:
    return Recorded(uuid=f"GPU-{number}", name=name, memory=80 * GIB, used=used, index=number, visible=visible)


def _bundle(**linux: Any) -> bundles.Bundle:
    env = linux.pop("env", [])
    return bundles.parse("/b", json.dumps({"process": {"env": env}, "linux": linux}).encode())


def test_a_gpu_that_is_there_again_stays_itself_and_needs_no_map() -> None:
    assert device_map([_old(0), _old(1)], [_gpu(0), _gpu(1)], ["GPU-1", "GPU-0"]) == ((), [])


def test_the_map_names_what_the_container_could_open_and_no_other() -> None:
    node = [_gpu(0), _gpu(1)]
    alone = [_old(0), _old(1, used=0, visible=False)]
    assert device_map(alone, node, ["GPU-1"]) == ((("GPU-0", "GPU-1"),), [])
    both = [_old(0), _old(1, used=0)]
    assert device_map(both, [_gpu(1), _gpu(2)], ["GPU-2", "GPU-1"]) == (
        (("GPU-0", "GPU-2"), ("GPU-1", "GPU-1")),
        [],
    ), "the one in use chooses first, and not the place of one that stays itself"


def test_a_gpu_that_was_visible_and_not_used_needs_a_place_too() -> None:
    pairs, (problem,) = device_map([_old(0), _old(1, used=0)], [_gpu(0), _gpu(1)], ["GPU-1"])
    assert pairs == ()
    assert "no GPU for GPU-1" in problem
    assert "which the old container could open" in problem
    assert device_map([_old(0), _old(1, used=0)], [_gpu(0), _gpu(1)], ["GPU-0"])[1] != [], "though nothing moves"


def test_on_another_node_places_are_taken_by_position() -> None:
    node = [_gpu(0, uuid="GPU-a"), _gpu(1, uuid="GPU-b")]
    pairs, problems = device_map([_old(0), _old(1)], node, ["GPU-b", "GPU-a"])
    assert problems == []
    assert pairs == (("GPU-0", "GPU-b"), ("GPU-1", "GPU-a"))


def test_identity_comes_before_position() -> None:
    pairs, _ = device_map([_old(0), _old(1)], [_gpu(1), _gpu(2)], ["GPU-1", "GPU-2"])
    assert dict(pairs) == {"GPU-0": "GPU-2", "GPU-1": "GPU-1"}


def test_what_is_wanted_comes_before_identity() -> None:
    swapped = {"GPU-0": "GPU-1", "GPU-1": "GPU-0"}
    node = [_gpu(0), _gpu(1)]
    pairs, problems = device_map([_old(0), _old(1)], node, ["GPU-0", "GPU-1"], swapped)
    assert (dict(pairs), problems) == (swapped, [])
    pairs, problems = device_map([_old(0), _old(1, used=0)], node, ["GPU-0", "GPU-1"], {"GPU-0": "GPU-1"})
    assert (dict(pairs), problems) == (swapped, [])


@pytest.mark.parametrize(
    ("place", "why"),
    [("GPU-9", "is not on this node"), ("GPU-1", "is not the container's"), ("GPU-2", "is a L4 with")],
)
def test_what_is_wanted_must_be_the_containers_and_fit(place: str, why: str) -> None:
    node = [_gpu(0), _gpu(1), _gpu(2, name="L4")]
    pairs, (problem,) = device_map([_old(0)], node, ["GPU-0", "GPU-2"], {"GPU-0": place})
    assert pairs == ()
    assert why in problem


def test_the_annotation_that_chooses_gpus() -> None:
    recording = cudaplan.Recording(driver="580.1", gpus=(_old(0), _old(1, used=0)), processes=())
    node = Node(driver="580.1", gpus=(_gpu(0), _gpu(1, persistence=False)))
    config: dict[str, Any] = {"process": {"env": ["NVIDIA_VISIBLE_DEVICES=all"]}, "linux": {}}

    def plan(said: str) -> cudaplan.CudaPlan:
        config["annotations"] = {"grit.dev/device-map": said}
        return cudaplan.make(recording, bundles.parse("/b", json.dumps(config).encode()), node, {})

    moved = plan("GPU-0=GPU-1")
    assert dict(moved.device_map) == {"GPU-0": "GPU-1", "GPU-1": "GPU-0"}
    assert "not in persistence mode" in moved.warnings[0]
    assert (plan("").device_map, plan("").problems, plan("").warnings) == ((), (), ())
    for odd in ("GPU-0", "GPU-9=GPU-1", "GPU-0=GPU-1,GPU-0=GPU-0", "="):
        assert "is not a list of OLD=NEW" in plan(odd).problems[0]


@pytest.mark.parametrize("given", [_gpu(7, name="L4"), _gpu(7, memory=40 * GIB)], ids=["another model", "less memory"])
def test_a_gpu_that_does_not_fit_is_named(given: Gpu) -> None:
    pairs, problems = device_map([_old(0)], [given], [given.uuid])
    assert pairs == ()
    assert len(problems) == 1
    assert "GPU-0" in problems[0]
    assert given.name in problems[0]


def test_what_a_container_is_given() -> None:
    node = Node(driver="580.1", gpus=(_gpu(0), _gpu(1)))
    assert cudaplan.granted(_bundle(devices=[{"path": "/dev/nvidia1"}]), node) == ["GPU-1"]
    assert cudaplan.granted(_bundle(env=["NVIDIA_VISIBLE_DEVICES=all"]), node) == ["GPU-0", "GPU-1"]
    assert cudaplan.granted(_bundle(env=["NVIDIA_VISIBLE_DEVICES=GPU-1,0"]), node) == ["GPU-1", "GPU-0"]
    for nothing in ("void", "none", "", "GPU-9"):
        assert cudaplan.granted(_bundle(env=[f"NVIDIA_VISIBLE_DEVICES={nothing}"]), node) == []
    everything = {"devices": [{"allow": False, "access": "rwm"}, {"allow": True, "access": "rwm"}]}
    assert cudaplan.granted(_bundle(resources=everything), node) == ["GPU-0", "GPU-1"]
    nothing_at_all = {"devices": [{"allow": False, "access": "rwm"}]}
    assert cudaplan.granted(_bundle(resources=nothing_at_all), node) == []


def test_device_rules_and_nodes_are_added_and_what_is_there_stays() -> None:
    config = {
        "linux": {"devices": [{"path": "/dev/nvidia0", "major": 1}], "resources": {"devices": [{"allow": False}]}}
    }
    devices = (
        Device(path="/dev/nvidia0", major=195, minor=0),
        Device(path="/dev/nvidia-uvm", major=238, minor=0),
    )
    edited = cudaplan.edited(config, devices)["linux"]
    assert [node["path"] for node in edited["devices"]] == ["/dev/nvidia0", "/dev/nvidia-uvm"]
    assert edited["devices"][0] == {"path": "/dev/nvidia0", "major": 1}
    assert edited["resources"]["devices"][0] == {"allow": False}
    assert [(rule["major"], rule["minor"]) for rule in edited["resources"]["devices"][1:]] == [(195, 0), (238, 0)]
    assert config["linux"]["resources"] == {"devices": [{"allow": False}]}, "the caller's own must not change"


def test_every_problem_is_named_at_once() -> None:
    section = {
        "driver": "580.1",
        "gpus": [{"uuid": "GPU-0", "name": "H100", "memory": 80 * GIB, "index": 0}],
        "processes": [{"pid": 1, "restoreThread": 2, "memory": {"GPU-0": 50 * GIB}}],
    }
    recording = cudaplan.recorded(section, "grit.json")
    busy = Gpu(index=0, uuid="GPU-0", name="H100", minor=0, memory=80 * GIB, free=GIB, mig=True, compute_mode=2)
    made = cudaplan.make(
        recording,
        _bundle(env=["NVIDIA_VISIBLE_DEVICES=all"], resources={"memory": {"limit": GIB}}),
        Node(driver="570.2", gpus=(busy,)),
        {},
    )
    said = "; ".join(made.problems)
    for word in ("driver 580.1", "1024 MiB free", "MIG mode", "Prohibited", "memory limit of 1024 MiB"):
        assert word in said
    assert len(made.problems) == 5


@pytest.mark.parametrize(
    "section",
    [
        {"processes": [{}]},
        {"processes": [{"pid": "x", "restoreThread": 1, "memory": None}], "gpus": [], "driver": ""},
        {"processes": [{"pid": 1, "restoreThread": 1, "memory": 3}], "gpus": [], "driver": ""},
        {"processes": "ab", "gpus": [], "driver": ""},
    ],
)
def test_a_damaged_section_is_refused(section: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"section cuda of grit\.json is damaged"):
        cudaplan.recorded(section, "grit.json")


def test_the_tolerance_for_memory_that_came_back() -> None:
    assert is_back(GIB, GIB)
    assert is_back(GIB, GIB - (60 << 20))
    assert not is_back(GIB, GIB - (70 << 20))
    assert not is_back(2 * GIB, 0)
    assert is_back(40 * GIB, 40 * GIB - (800 << 20))
    assert not is_back(40 * GIB, 39 * GIB)


def test_who_decides_what_a_failed_restore_becomes() -> None:
    key = "grit.dev/on-restore-failure"
    assert cudaplan.on_failure({}, "fail") == "fail"
    assert cudaplan.on_failure({}, "cold-start") == "cold-start"
    assert cudaplan.on_failure({key: "cold-start"}, "fail") == "cold-start"
    assert cudaplan.on_failure({key: "nonsense"}, "fail") == "fail"
