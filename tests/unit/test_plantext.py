"""What is said of a restore that was looked at."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from grit_runtime.checkpoint.kinds import Found, Kind
from grit_runtime.commands import plantext
from grit_runtime.config import Archive, Config
from grit_runtime.criu.images import ImageMount, ImageProcess, Images
from grit_runtime.downstream import Downstream
from grit_runtime.errors import InterruptedCallError
from grit_runtime.oci import argv
from grit_runtime.oci.bundle import Bundle
from grit_runtime.oci.log import Notes
from grit_runtime.workflow import hollow, source
from grit_runtime.workflow.context import Context
from grit_runtime.workflow.foresee import Content, Foreseen, foresee
from grit_runtime.workflow.mounts import Action, MountStep
from grit_runtime.workflow.plan import Plan
from grit_runtime.workflow.prepare import Request, Survey

HOSTILE = "/data\x1b[2J\nproblems"


def _mount(destination: str, key: str) -> ImageMount:
    return ImageMount(
        file="mountpoints-1.img",
        index=0,
        mnt_id=1,
        parent_id=0,
        mountpoint=destination,
        source="",
        root="/",
        fstype="ext4",
        ext_key=key,
        deleted=False,
    )


def _seen(**more: Any) -> Foreseen:
    config: dict[str, Any] = {"annotations": {"grit.dev/on-restore-failure": "cold-start"}}
    request = Request(
        bundle=Bundle(path="/b", raw=b"", config=config),
        images="/i",
        work="",
        pid_file="/p",
        flags=(),
        serves_create=True,
    )
    step = MountStep(mount=_mount(HOSTILE, HOSTILE), action=Action.REMAP, new_source="/new")
    processes = (ImageProcess(pid=1, ppid=0, threads=1), ImageProcess(pid=7, ppid=1, threads=1, stopped=True))
    images = Images(path="/i", files=("a", "b"), mounts=(step.mount,), processes=processes, version=2)
    found = Found(kind=Kind.RUNC, images="/i")
    made = Plan(
        container="new",
        images="/i",
        mounts=(step,),
        stopped=(7,),
        rewrites={"mountpoints-1.img": {0: {"ext_key": HOSTILE}}},
    )
    survey = Survey(
        request=request,
        found=found,
        manifest=None,
        images=images,
        contents=found,
        plan=made,
        cuda=None,
        problems=(),
    )
    context = Context(
        invocation=argv.scan(["plan"]),
        config=Config(),
        downstream=Downstream(program="/sbin/runc", options=(), root="/run/runc"),
        log=Notes(),
        container="new",
    )
    return Foreseen(context=context, request=request, found=found, survey=survey, **more)


def test_no_name_reaches_the_terminal_as_a_control_sequence() -> None:
    said = plantext.render(_seen(problems=[f"mount {HOSTILE} is gone"]))
    assert "\x1b" not in said
    assert said.count("\nproblems\n") == 1
    assert said.endswith("\nit would fail: 1 problem\n")


def test_the_steps_are_those_of_a_create() -> None:
    left = Content(name="container.log", bytes=3, target="", left_out="there is no log")
    seen = _seen(contents=(left,), first="what a killed restore of container new left is put right")
    steps = list(plantext.steps(seen))
    assert steps[0] == "what a killed restore of container new left is put right"
    assert "leave out container.log (3 bytes): there is no log" in steps
    assert "call runc restore: 2 processes, stopped" in steps
    assert steps[-2:] == ["write /p", "wait for `start`, which lets the processes run, but for 7, stopped at the dump"]
    document = plantext.document(seen)
    assert (document["works"], document["on_failure"], document["memory"]) == (True, "cold-start", None)
    json.dumps(document)


def test_a_signal_ends_the_looking_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object, __: Archive, scratch: str) -> Found:
        os.mkdir(scratch)
        raise InterruptedCallError("interrupted by SIGTERM")

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(hollow, "find", interrupted)
    monkeypatch.setattr(source, "hold", lambda *_: None)
    seen = _seen()
    with pytest.raises(InterruptedCallError):
        foresee(seen.context, seen.request)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_cannot_be_read_has_no_steps() -> None:
    seen = _seen(problems=["it is damaged"])
    seen.survey = None
    assert list(plantext.steps(seen)) == []
    assert plantext.document(seen)["mounts"] == []
