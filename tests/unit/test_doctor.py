"""Each check judges made facts; what is said of them is plain, as JSON, labels and metrics."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from grit_runtime.config import Config, Cuda, Memory
from grit_runtime.cuda.gpus import Gpu, Node
from grit_runtime.doctor import output, table
from grit_runtime.doctor.facts import Criu, Engine, Facts, Folder, Gpus, Kernel, Leftovers, Program
from grit_runtime.doctor.model import Judged, State

ROOT = Path(__file__).resolve().parents[2]
GIB = 1 << 30


def _gpu(**more: Any) -> Gpu:
    return Gpu(index=0, uuid="GPU-0", name="G", **more)


def _gpus(*gpus: Gpu, driver: str = "580.1", **more: Any) -> Gpus:
    known: dict[str, Any] = {"by": "driver", "toolkit": ("/usr/bin/nvidia-container-runtime",), **more}
    return Gpus(present=True, node=Node(driver=driver, gpus=gpus or (_gpu(),)), **known)


KERNEL = Kernel(
    release="6.1.0-28-amd64",
    architecture="x86_64",
    page_size=4096,
    cgroup="v2",
    map_files=True,
    userfaultfd="",
    fault_device=True,
    ptrace_scope=1,
    huge_pages="madvise",
)
CRIU = Criu(program=Program(path="/sbin/criu", version="4.2.1"), check_code=0, check_said=("Looks good.",))
ENGINE = Engine(name="containerd", pid=7, path="/usr/bin", registered=True)
FOLDER = Folder(path="/c", use="checkpoints", exists=True, free=99 * GIB, write=1e9, read=1e9)
GOOD = Facts(
    config=Config(),
    kernel=KERNEL,
    launcher=Program(path="/usr/local/bin/grit-runtime"),
    downstream=Program(path="/sbin/runc", version="runc version 1.1.5"),
    criu=CRIU,
    engines=(ENGINE,),
    folders=(FOLDER,),
    memory=16 * GIB,
    state_fs="tmpfs",
    gpus=_gpus(),
)


def _with(**changes: Any) -> Facts:
    """The good facts, with some otherwise: `kernel__cgroup` is the field of a part."""
    facts = GOOD
    for name, value in changes.items():
        part, _, field = name.partition("__")
        if field:
            inner = getattr(facts, part)
            one = inner[0] if isinstance(inner, tuple) else inner
            changed = dataclasses.replace(one, **{field: value})
            value = (changed,) if isinstance(inner, tuple) else changed
        facts = dataclasses.replace(facts, **{part: value})
    return facts


def _judge(facts: Facts, check: str) -> Judged:
    (found,) = [item for item in table.judge(facts) if item.id == check]
    return found


def test_a_good_node_passes_every_check() -> None:
    judged = table.judge(GOOD)
    assert {item.id for item in judged} == set(table.IDS)
    assert [item for item in judged if item.verdict.state is not State.OK] == []
    assert table.able(judged, gpu=True)


# The check, what is otherwise, the state, and words of what is said or to be done.
CASES: list[tuple[str, dict[str, Any], State, str]] = [
    ("kernel.checkpoint", {"kernel__map_files": False}, State.FAIL, "CONFIG_CHECKPOINT_RESTORE"),
    ("kernel.ptrace", {"kernel__ptrace_scope": 3}, State.FAIL, "ptrace_scope is 3"),
    ("kernel.ptrace", {"kernel__ptrace_scope": None}, State.OK, "root may trace"),
    ("kernel.cgroup", {"kernel__cgroup": "v1"}, State.WARN, "stopped task"),
    ("kernel.cgroup", {"kernel__cgroup": "hybrid"}, State.WARN, "hybrid"),
    ("kernel.cgroup", {"kernel__cgroup": ""}, State.FAIL, "mount it"),
    ("memory.way", {"kernel__architecture": "aarch64"}, State.WARN, "process_vm_writev"),
    ("memory.way", {"kernel__userfaultfd": "Function not implemented"}, State.WARN, "Function not implemented"),
    ("memory.way", {"kernel__page_size": 65536}, State.WARN, "with one thread"),
    (
        "memory.way",
        {"kernel__page_size": 65536, "config": Config(memory=Memory(transport="parallel"))},
        State.FAIL,
        "to `auto`",
    ),
    ("memory.way", {"config": Config(memory=Memory(transport="criu"))}, State.OK, "by the configuration"),
    ("memory.way", {"config": Config(memory=Memory(fill="behind"))}, State.OK, "behind a container that runs"),
    (
        "memory.way",
        {"config": Config(memory=Memory(fill="behind")), "kernel__fault_device": False},
        State.WARN,
        "no /dev/userfaultfd",
    ),
    ("runtime.launcher", {"launcher": Program(error="the launcher is nowhere")}, State.FAIL, "nowhere"),
    ("runtime.downstream", {"downstream": Program(error="no runc")}, State.FAIL, "install runc"),
    ("runtime.downstream", {"lacks": ("restore",)}, State.FAIL, "no verb restore"),
    ("criu.found", {"criu__program": Program(error="criu is not in PATH (/bin)")}, State.FAIL, "not in PATH (/bin)"),
    ("criu.version", {"criu__program": Program(path="/c", version="3.17.1")}, State.WARN, "older than 4.1.1"),
    ("criu.version", {"criu__program": Program(path="/c", version="odd")}, State.SKIP, "isn't known"),
    (
        "criu.version",
        {"criu__program": Program(path="/c", version="4.1.1"), "kernel__release": "6.18.44"},
        State.WARN,
        "4.2 or newer",
    ),
    ("criu.check", {"criu__check_code": 1, "criu__check_said": ("Error: no",)}, State.FAIL, "ended with 1: Error: no"),
    ("criu.check", {"criu__check_code": None, "criu__check_said": ()}, State.FAIL, "didn't end in time"),
    ("criu.check", {"criu__program": Program(error="none")}, State.SKIP, "no CRIU"),
    ("criu.python", {"criu__pycriu": "ImportError: no"}, State.FAIL, "ImportError"),
    ("criu.plugins", {"criu__plugins": ("/usr/lib/criu/cuda_plugin.so",)}, State.WARN, "plain runc's"),
    ("criu.plugins", {"criu__plugins": ("/usr/lib/criu/amdgpu_plugin.so",)}, State.OK, "amdgpu_plugin"),
    ("criu.plugins", {"config": Config(cuda=Cuda(mode="criu-plugin"))}, State.FAIL, "no cuda_plugin.so"),
    ("criu.defaults", {"criu__defaults": ("tcp-close",)}, State.WARN, "tcp-close"),
    ("engine.found", {"engines": ()}, State.WARN, "--engine"),
    ("engine.found", {"engines": (), "engines_wanted": False}, State.SKIP, "not looked for"),
    ("engine.running", {"engines__pid": None}, State.WARN, "no process"),
    ("engine.running", {"engines__name": "podman"}, State.SKIP, "no process of its own"),
    ("engine.registered", {"engines__registered": False}, State.FAIL, "grit-runtime install --engine containerd"),
    ("engine.registered", {"engines__problems": ("not told the annotations",)}, State.FAIL, "annotations"),
    ("engine.restart", {"engines__restart": True}, State.WARN, "systemctl restart containerd"),
    ("engine.restart", {"engines__pid": None}, State.SKIP, "doesn't run"),
    ("engine.path", {"engines__missing": ("criu",)}, State.FAIL, "criu is not in the PATH of containerd's process"),
    ("storage.roots", {"folders__exists": False}, State.WARN, "mkdir -p -m 700 /c"),
    ("storage.state", {"state_fs": "ext4"}, State.WARN, "outlive a reboot"),
    ("storage.owner", {"folders__trusted": "it belongs to user 7"}, State.FAIL, "chown root: /c"),
    ("storage.space", {"folders__free": GIB - 1}, State.FAIL, "make room"),
    ("storage.space", {"folders__free": 2 * GIB}, State.WARN, "less than the node's memory of 16.0 GiB"),
    ("storage.speed", {"folders__write": 1e6}, State.WARN, "faster disk"),
    ("storage.speed", {"folders__write": None}, State.SKIP, "not measured"),
    ("leftovers", {"leftovers": Leftovers(journals=("c",))}, State.WARN, "grit-runtime recover"),
    ("leftovers", {"leftovers": Leftovers(damaged=("journal x",))}, State.FAIL, "journal x"),
    ("leftovers", {"leftovers": Leftovers(unpacked=("/u/r!c",))}, State.WARN, "rm -r /u/r!c"),
    ("gpu.api", {"gpus": Gpus(present=False)}, State.SKIP, "no NVIDIA GPU"),
    ("gpu.api", {"gpus": Gpus(present=True, error="too old")}, State.FAIL, "driver 570 or newer"),
    ("gpu.driver", {"gpus__node": None}, State.WARN, "NVML"),
    ("gpu.driver", {"gpus": _gpus(driver="570.1")}, State.WARN, "580 or newer"),
    ("gpu.state", {"gpus": _gpus(_gpu(mig=True))}, State.FAIL, "MIG"),
    ("gpu.state", {"gpus": _gpus(_gpu(mps_clients=(3,)))}, State.FAIL, "MPS"),
    ("gpu.state", {"gpus": _gpus(_gpu(compute_mode=2))}, State.FAIL, "Prohibited"),
    ("gpu.state", {"gpus": _gpus(_gpu(compute_mode=3))}, State.WARN, "one process each"),
    ("gpu.state", {"gpus": _gpus(_gpu(persistence=False))}, State.WARN, "nvidia-persistenced"),
    ("gpu.devices", {"gpus__toolkit": ()}, State.WARN, "nvidia-ctk cdi generate"),
    ("gpu.devices", {"gpus__cdi_errors": ("x.yaml is damaged",)}, State.WARN, "x.yaml"),
    ("gpu.devices", {"gpus__cdi": ("nvidia.com/gpu=0",), "gpus__toolkit": ()}, State.OK, "nvidia.com/gpu=0"),
    ("gpu.devices", {"config": Config(devices="none")}, State.OK, "by the configuration"),
    ("gpu.huge-pages", {"kernel__huge_pages": "never"}, State.WARN, "madvise"),
    ("gpu.huge-pages", {"config": Config(cuda=Cuda(huge_pages="never"))}, State.OK, "by the configuration"),
]


@pytest.mark.parametrize(("check", "changes", "state", "said"), CASES, ids=lambda value: str(value)[:40])
def test_a_check(check: str, changes: dict[str, Any], state: State, said: str) -> None:
    facts = _with(**changes)
    verdict = _judge(facts, check).verdict
    assert verdict.state is state, verdict
    assert said in " ".join([verdict.found, verdict.todo, *verdict.fix])
    assert bool(verdict.todo) == (state in (State.WARN, State.FAIL)), "what to do is said of what is wrong, alone"


def test_every_check_is_tried_when_something_is_wrong() -> None:
    assert {check for check, *_ in CASES} == set(table.IDS)


def test_every_check_is_documented_and_no_other() -> None:
    text = (ROOT / "docs/doctor.md").read_text()
    assert tuple(re.findall(r"^\| `([a-z.-]+)` \|", text, re.MULTILINE)) == table.IDS


@pytest.mark.parametrize(
    ("changes", "restore", "gpu"),
    [
        ({}, True, True),
        ({"gpus": Gpus(present=False)}, True, False),
        ({"gpus": _gpus(_gpu(mig=True))}, True, False),
        ({"criu__check_code": 1}, False, False),
        ({"criu__defaults": ("x",)}, True, True),
    ],
)
def test_who_is_able_to_what(changes: dict[str, Any], restore: bool, gpu: bool) -> None:
    facts = _with(**changes)
    judged = table.judge(facts)
    assert (table.able(judged, gpu=False), table.able(judged, gpu=True)) == (restore, gpu)
    document = output.document(facts, judged)
    assert document["able"] == {"restore": restore, "restore-gpu": gpu}
    assert document["labels"]["grit.dev/restore"] == str(restore).lower()
    assert f'grit_runtime_able{{containers="cuda"}} {int(gpu)}\n' in output.metrics(judged, 1.0)
    json.dumps(document)


def test_labels_are_labels_and_metrics_are_metrics() -> None:
    facts = _with(
        criu__program=Program(path="/c", version="4.2.1 (odd\nthing)"),
        gpus=_gpus(driver="580.1 beta/" + "x" * 99),
        folders__path='/c"\\\n',
    )
    judged = table.judge(facts)
    for line in output.label_lines(facts, judged).splitlines():
        assert re.fullmatch(r"grit\.dev/[a-z-]+=[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", line)
    form = r'[a-z_]+(\{([a-z]+="([^"\\\n]|\\[\\"n])*",?)+\})? [0-9]+|# (HELP|TYPE) .*'
    for line in output.metrics(judged, 1.5).splitlines():
        assert re.fullmatch(form, line), line


def test_text_is_plain_and_hints_are_asked_for() -> None:
    facts = _with(engines__problems=("evil\x1b[2J",), criu__check_code=1)
    judged = table.judge(facts)
    text = output.render(judged, hints=False)
    assert "\x1b" not in text
    assert "$ " not in text
    assert text.endswith("this node is not able to checkpoint and restore containers, but none with CUDA\n")
    with_hints = output.render(table.judge(_with(engines__restart=True)), hints=True)
    assert "$ systemctl restart containerd" in with_hints
    assert with_hints.endswith("this node is able to checkpoint and restore containers, with CUDA too\n")
