"""The test itself: what is done, in order, and what must be so at each step."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from grit_runtime.e2e.gpu import Gpu
from grit_runtime.e2e.node import FailedError, Node
from grit_runtime.e2e.pod import CONTAINER, GPU_MEBIBYTES, NAMESPACE, SECRET, Pod
from grit_runtime.host import proc

_BEFORE = 10  # numbers counted before the capture
_SLOWEST = 50  # MiB that the workload fills or compares in a second
_AFTER = 10  # and after the restore


@dataclass(kw_only=True)
class Report:
    """What was done and seen.

    Args:
        tell: is called with each line as it comes about.
    """

    tell: Callable[[str], None]
    phases: list[tuple[str, float]] = field(default_factory=list)
    checks: list[tuple[str, bool]] = field(default_factory=list)
    checkpoint_bytes: int = 0
    skipped: list[str] = field(default_factory=list)

    @contextmanager
    def phase(self, title: str) -> Iterator[None]:
        """Time it."""
        begun = time.monotonic()
        yield
        seconds = time.monotonic() - begun
        self.phases.append((title, seconds))
        self.tell(f"{seconds:8.2f} s  {title}")

    def check(self, text: str, holds: bool, seen: object = "") -> None:
        """Say what must be so.

        Raises:
            FailedError: it isn't.
        """
        self.checks.append((text, holds))
        self.tell(f"      {'ok' if holds else 'NOT SO'}: {text}")
        if not holds:
            raise FailedError(f"not so: {text}{f'; seen: {seen}' if seen != '' else ''}")


def play(node: Node, report: Report, mebibytes: int, gpu: Gpu | None = None) -> None:
    """Run a pod, capture it, remove it, start another one from the checkpoint, and look.

    Args:
        mebibytes: how much memory the workload holds.
        gpu: what it is given, to hold some memory there, too.

    Raises:
        FailedError: something failed, or isn't as it must be.
    """
    node.patience += mebibytes / _SLOWEST
    spec = _spec(node)
    old, new = (Pod(base=node.base, role=role, gpu=gpu) for role in ("old", "new"))
    with report.phase("a pod starts"):
        _sandbox(node, old, spec)
        old.make_container(spec, sandbox_pid=node.state(old.sandbox)["pid"], mebibytes=mebibytes)
        _start(node, old)
        node.wait("the workload counts", lambda: len(old.numbers()) >= _BEFORE or bool(old.failure()))
        if old.failure():
            raise FailedError(f"the workload could not start: {old.failure()}")
    before = _ask(node, old)
    pid = node.state(old.container)["pid"]
    tree = _tree(pid)
    report.check(
        f"it counts, with a child, and holds {mebibytes} MiB{f', and {GPU_MEBIBYTES} MiB on the GPU' if gpu else ''}",
        len(tree) == 2,
        tree,
    )
    images = os.path.join(node.checkpoints, NAMESPACE, "e2e", CONTAINER, "checkpoint")
    os.makedirs(os.path.dirname(images))
    with report.phase("capture: `checkpoint`, and the container ends"):
        node.call("checkpoint", "--image-path", images, old.container)
        node.wait("the container ends", lambda: not proc.is_running(pid))
    report.checkpoint_bytes = _size(images)
    report.check("the checkpoint is complete: it has grit.json", os.path.exists(os.path.join(images, "grit.json")))
    last = old.numbers()[-1]
    with report.phase("the pod is removed, and all its directories"):
        node.delete(old.container)
        node.delete(old.sandbox)
        shutil.rmtree(old.directory)
    with report.phase("restore: a new pod, `create` with the annotation, `start`"):
        _sandbox(node, new, spec)
        sandbox_pid = node.state(new.sandbox)["pid"]
        place = os.path.join(node.checkpoints, NAMESPACE, "e2e")
        new.make_container(spec, sandbox_pid=sandbox_pid, mebibytes=mebibytes, checkpoint=place)
        _start(node, new)
        node.wait("it goes on", lambda: len(new.numbers()) >= 1)
    with report.phase("look at it"):
        _look(node, report, new, last=last, before=before, tree=tree, sandbox_pid=sandbox_pid)
    with report.phase("the new pod is removed"):
        node.delete(new.container)
        node.delete(new.sandbox)


def _look(
    node: Node,
    report: Report,
    new: Pod,
    *,
    last: int,
    before: dict[str, Any],
    tree: list[list[str]],
    sandbox_pid: int,
) -> None:
    node.wait("it counts on", lambda: len(new.numbers()) >= _AFTER)
    numbers = new.numbers()
    expected = list(range(last + 1, last + 1 + len(numbers)))
    report.check(
        f"it goes on with {last + 1}, after {last}, and leaves no number out", numbers == expected, numbers[:3]
    )
    after = _ask(node, new)
    report.check("it is the process of before: it knows its token", after["token"] == before["token"])
    same = after["digest"] == after["digest_of_start"] == before["digest"]
    report.check("its memory is what it was, to the last byte", same)
    if new.gpu:
        same = bool(after["gpu_digest"]) and after["gpu_digest"] == before["gpu_digest"]
        report.check("its memory on the GPU is what it was, to the last byte", same)
    report.check("its child counts on with it", after["child_number"] == after["number"], after["child_number"])
    pids = [(answer["pid"], answer["child"]) for answer in (before, after)]
    report.check("the pids in the container are the same", pids[0] == pids[1], pids)
    report.check(
        "inside, the secret and /etc/hostname are the new pod's",
        (after["secret"], after["hostname"]) == (new.uid, new.name),
    )
    report.check("the host name is the new sandbox's", after["node_name"] == new.name, after["node_name"])
    state = node.state(new.container)
    pid = state["pid"]
    report.check("the runtime says that it runs", state["status"] == "running", state["status"])
    report.check("outside, the process tree is as before, with its command lines", _tree(pid) == tree, _tree(pid))
    joined = all(proc.namespace(pid, kind) == proc.namespace(sandbox_pid, kind) for kind in ("net", "ipc", "uts"))
    report.check("it is in the namespaces of the new sandbox", joined)
    sources = {line.split()[4]: line.split()[3] for line in proc.mountinfo(pid).splitlines()}
    wrong = [
        to for to in ("/data", "/etc/hostname", "/etc/hosts", SECRET) if f"/{new.role}/" not in sources.get(to, "")
    ]
    report.check("its mounts are the new pod's", not wrong, wrong)
    said = node.call("exec", new.container, "/usr/bin/env", "-i", "/bin/cat", "/etc/hostname").strip()
    report.check("`exec` in it works", said == new.name, said)


def _spec(node: Node) -> dict[str, Any]:
    """The downstream's own config.json, to be filled."""
    node.call("spec", "--bundle", node.base)
    with open(os.path.join(node.base, "config.json"), encoding="utf-8") as stream:
        found: dict[str, Any] = json.load(stream)
    os.unlink(os.path.join(node.base, "config.json"))
    return found


def _sandbox(node: Node, pod: Pod, spec: dict[str, Any]) -> None:
    pod.make_sandbox(spec)
    node.call("create", "--bundle", pod.bundle(pod.sandbox), pod.sandbox)
    node.call("start", pod.sandbox)


def _start(node: Node, pod: Pod) -> None:
    node.call("create", "--bundle", pod.bundle(pod.container), pod.container)
    node.call("start", pod.container)


def _ask(node: Node, pod: Pod) -> dict[str, Any]:
    """Have the workload say how it is."""
    answer = os.path.join(pod.data, "answer")
    with open(os.path.join(pod.data, "ask"), "w", encoding="ascii"):
        pass
    node.wait("the workload answers", lambda: os.path.exists(answer))
    with open(answer, encoding="utf-8") as stream:
        found: dict[str, Any] = json.load(stream)
    os.unlink(answer)
    return found


def _tree(pid: int) -> list[list[str]]:
    """The command lines of a process and its children, in order."""
    return [proc.command_line(pid), *(line for child in proc.children(pid) for line in _tree(child))]


def _size(directory: str) -> int:
    return sum(entry.stat().st_size for entry in os.scandir(directory) if entry.is_file())
