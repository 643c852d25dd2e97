"""containerd's CRI plugin with the example configuration: a pod starts from a checkpoint by its annotation alone."""

import os
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pods import TOKEN, Failed, Pod, wait

from tests.e2e.cri import Cri
from tests.requirements import RUNTIME, containerds

pytestmark = pytest.mark.needs("root", "runc", "criu", "containerd 1.7", "cri", "busybox", "runtime")

COUNT = "trap 'exit 7' TERM; i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done"
LOOK = f"/etc/hostname {TOKEN}/token /etc/hosts /etc/settings/value /etc/key/value"


@pytest.fixture(scope="module", params=containerds())
def containerd(request: pytest.FixtureRequest) -> Iterator[Cri]:
    """A containerd with CRI, in place of the one that the other modules use."""
    with Cri(RUNTIME, containerds()[request.param]) as made:
        yield made


def _started(cri: Cri, *, tty: bool = False) -> Pod:
    pod = Pod(base=cri.base, name="old")
    cri.run_pod(pod)
    cri.start(pod, COUNT, tty=tty)
    wait("it counts", lambda: len(cri.numbers(pod)) >= 5)
    return pod


def _goes_on(cri: Cri, pod: Pod, last: int, name: str = "app", attempt: int = 0) -> None:
    """The container's log holds what the old one had written, and goes on from there."""
    wait("it goes on", lambda: len(cri.numbers(pod, name, attempt)) >= last + 5)
    numbers = cri.numbers(pod, name, attempt)
    assert numbers == list(range(1, len(numbers) + 1))


def _restored(cri: Cri, name: str) -> tuple[Pod, int]:
    """A new pod that goes on where an old one was, and the last number of that one."""
    old = _started(cri)
    checkpoint, last = _checkpointed(cri, old, name)
    cri.remove(old)
    new = Pod(base=cri.base, name="new")
    cri.run_pod(new, checkpoint=checkpoint)
    cri.start(new, COUNT, checkpoint=checkpoint)
    _goes_on(cri, new, last)
    return new, last


def _has_ended(cri: Cri, container: str) -> None:
    """Wait for CRI: while it handles the end of a task, StopPodSandbox fails with `ttrpc: closed`."""
    wait("CRI sees the end", lambda: cri.exit_code(container) is not None)


def _checkpointed(cri: Cri, pod: Pod, name: str) -> tuple[str, int]:
    images = cri.checkpoint(pod, name, stop=True)
    _has_ended(cri, pod.container)
    return str(images.parents[1]), cri.numbers(pod)[-1]


@pytest.mark.parametrize("tty", [False, True])
def test_a_pod_comes_back_as_another_by_its_annotation(containerd: Cri, tty: bool) -> None:
    old = _started(containerd, tty=tty)
    checkpoint, last = _checkpointed(containerd, old, f"pod-{tty}")
    containerd.remove(old)

    new = Pod(base=containerd.base, name="new")
    containerd.run_pod(new, checkpoint=checkpoint)
    containerd.start(new, "echo it starts from scratch", tty=tty, checkpoint=checkpoint)

    _goes_on(containerd, new, last)
    said = containerd.exec(new.container, "/bin/cat", *LOOK.split())
    token, rest = f"new\ntoken of pod {new.uid}\n", f"configmap of pod {new.uid}\nsecret of pod {new.uid}\n"
    assert said == f"{token}127.0.0.1 localhost new\n{rest}"
    assert containerd.exec(new.container, "/bin/hostname") == "new\n"
    assert _cgroups(containerd.pid(new.container)) == _cgroups(containerd.pid(new.sandbox)).replace(
        new.sandbox, new.container
    )
    assert list(Path("/sys/fs/cgroup").glob(f"*{containerd.cgroup}/pod{old.uid}")) == []
    for kind in ("net", "ipc", "uts"):
        assert _namespace(containerd.pid(new.container), kind) == _namespace(containerd.pid(new.sandbox), kind)
    assert containerd.stop(new.container) == 7
    containerd.remove(new)


def test_a_start_that_failed_for_want_of_a_checkpoint_works_once_it_is_there(containerd: Cri) -> None:
    checkpoint = containerd.checkpoints / "default/late"
    early = Pod(base=containerd.base, name="early")
    containerd.run_pod(early, checkpoint=str(checkpoint))
    with pytest.raises(Failed, match=r"no such checkpoint: .*/default/late/app/checkpoint is no directory"):
        containerd.start(early, COUNT, checkpoint=str(checkpoint))
    assert containerd.numbers(early) == []
    old = _started(containerd)
    _, last = _checkpointed(containerd, old, "late")
    containerd.remove(old)
    containerd.start(early, COUNT, attempt=1, checkpoint=str(checkpoint))
    _goes_on(containerd, early, last, attempt=1)
    containerd.remove(early)


def test_every_container_of_a_pod_comes_back_from_its_own_checkpoint(containerd: Cri) -> None:
    old = _started(containerd)
    containerd.checkpoint(old, "both", stop=True)
    _has_ended(containerd, old.container)
    last = {"app": containerd.numbers(old)[-1]}
    side = containerd.start(old, COUNT, name="side")
    wait("it counts", lambda: len(containerd.numbers(old, "side")) >= 5)
    checkpoint = containerd.checkpoints / "default/both"
    images = str(checkpoint / "side/checkpoint")
    containerd.ctr("task", "checkpoint", "--exit", "--image-path", images, side)
    _has_ended(containerd, side)
    last["side"] = containerd.numbers(old, "side")[-1]
    containerd.remove(old)
    new = Pod(base=containerd.base, name="new")
    containerd.run_pod(new, checkpoint=str(checkpoint))
    for name in last:
        containerd.start(new, COUNT, name=name, checkpoint=str(checkpoint))
    for name, number in last.items():
        _goes_on(containerd, new, number, name)
    containerd.remove(new)


@pytest.mark.parametrize("containerd", [name for name in containerds() if not name.startswith("1.")], indirect=True)
def test_a_pod_comes_back_from_the_archive_of_checkpoint_container(containerd: Cri) -> None:
    old = _started(containerd)
    path = containerd.checkpoints / "default/checkpoint-old_default-app-2026-01-01T00:00:00Z.tar"
    path.parent.mkdir(exist_ok=True)
    containerd.exec(old.container, "/bin/sh", "-c", "echo written > /etc/motd")
    containerd.checkpoint_to_archive(old.container, path)
    before = path.read_bytes()
    wait("the old one counts on", lambda: len(containerd.numbers(old)) >= 20)
    containerd.remove(old)
    new = Pod(base=containerd.base, name="new")
    containerd.run_pod(new, checkpoint=str(path))
    containerd.start(new, "echo it starts from scratch", checkpoint=str(path))
    wait("it goes on", lambda: len(containerd.numbers(new)) >= 40)
    numbers = containerd.numbers(new)
    # containerd takes the log after it has let the old container go on: a line or two stand in it that come again.
    assert sorted(set(numbers)) == list(range(1, numbers[-1] + 1))
    assert len(numbers) - len(set(numbers)) < 10
    assert containerd.exec(new.container, "/bin/cat", "/etc/motd") == "written\n"
    assert containerd.exec(new.container, "/bin/cat", "/etc/hostname") == "new\n"
    assert path.read_bytes() == before
    containerd.remove(new)
    assert not (containerd.base / "unpacked").exists()


def test_one_checkpoint_becomes_two_pods_at_once_and_a_third_generation(containerd: Cri) -> None:
    old = _started(containerd)
    checkpoint, last = _checkpointed(containerd, old, "first")
    containerd.remove(old)
    pods = [Pod(base=containerd.base, name=f"new{number}") for number in range(2)]
    for pod in pods:
        containerd.run_pod(pod, checkpoint=checkpoint)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda pod: containerd.start(pod, COUNT, checkpoint=checkpoint), pods))
    for pod in pods:
        _goes_on(containerd, pod, last)
    checkpoint, last = _checkpointed(containerd, pods[0], "second")
    for pod in pods:
        containerd.remove(pod)
    third = Pod(base=containerd.base, name="third")
    containerd.run_pod(third, checkpoint=checkpoint)
    containerd.start(third, COUNT, checkpoint=checkpoint)
    _goes_on(containerd, third, last)
    containerd.remove(third)


def test_a_restored_container_is_measured_paused_and_resumed(containerd: Cri) -> None:
    pod, last = _restored(containerd, "measured")
    metrics = containerd.ctr("task", "metrics", pod.container)
    assert re.search(r"pids\.current\s+[1-9]", metrics), metrics
    containerd.ctr("task", "pause", pod.container)
    seen = containerd.numbers(pod)
    time.sleep(0.3)
    assert containerd.numbers(pod) == seen
    containerd.ctr("task", "resume", pod.container)
    wait("it goes on", lambda: len(containerd.numbers(pod)) > len(seen) + 3)
    _goes_on(containerd, pod, last)
    assert containerd.stop(pod.container) == 7


def test_a_restored_container_outlives_a_restart_of_containerd(containerd: Cri) -> None:
    pod, _ = _restored(containerd, "restart")
    containerd.stop_serving()
    containerd.serve()
    assert containerd.status(pod.container) == "RUNNING"
    seen = len(containerd.numbers(pod))
    wait("it goes on", lambda: len(containerd.numbers(pod)) > seen + 3)
    assert containerd.exec(pod.container, "/bin/cat", "/etc/hostname") == "new\n"
    assert containerd.stop(pod.container) == 7


# containerd 2.1 calls any container ended whose shim was killed, and lets its processes and cgroups be.
@pytest.mark.parametrize("containerd", [name for name in containerds() if name.startswith("1.")], indirect=True)
def test_a_shim_that_is_killed_takes_its_restored_container_along(containerd: Cri) -> None:
    pod, _ = _restored(containerd, "shim")
    pid = containerd.pid(pod.container)
    (shim,) = containerd.shims()
    bundle = containerd.bundle(pod.sandbox)
    said = [path.read_text() for name in ("address", "bootstrap.json") if (path := bundle / name).exists()]
    socket = Path(re.findall(r"unix://([^\"]*)", said[0])[0])
    os.kill(shim, signal.SIGKILL)
    _has_ended(containerd, pod.container)
    wait("its process ends", lambda: not Path(f"/proc/{pid}").exists())
    containerd.remove(pod)
    socket.unlink(missing_ok=True)  # which neither containerd nor a dead shim does
    containerd.unmount_netns()


# containerd 2.1 does not call the runtime again for such a container, and in two of six runs its shim or bundle stayed;
# whether plain runc's would, too, was not looked into. What is ours is undone: test_kill, "goes with the next restore".
@pytest.mark.parametrize("containerd", [name for name in containerds() if name.startswith("1.")], indirect=True)
def test_a_runtime_killed_while_it_restores_leaves_nothing_and_the_next_start_works(containerd: Cri) -> None:
    old = _started(containerd)
    checkpoint, last = _checkpointed(containerd, old, "killed")
    containerd.remove(old)
    new = Pod(base=containerd.base, name="new")
    containerd.run_pod(new, checkpoint=checkpoint)
    with ThreadPoolExecutor(1) as pool:
        starting = pool.submit(containerd.start, new, COUNT, checkpoint=checkpoint)
        wait("the restore begins", lambda: any(containerd.state.rglob("journal")))
        for pid in _runtimes(containerd):
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(Failed, match="StartContainer"):
            starting.result()
    assert len(containerd.numbers(new)) <= last
    bundle = containerd.bundle(new.container)
    containerd.start(new, COUNT, attempt=1, checkpoint=checkpoint)
    _goes_on(containerd, new, last, attempt=1)
    assert list(containerd.state.rglob("*/*")) == []
    assert not bundle.exists()


def _runtimes(cri: Cri) -> list[int]:
    """grit-runtime's processes: the shim's arguments are theirs, in Python's own."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if b"boot.py" in words and str(cri.base).encode() in words:
            found.append(int(entry.name))
    return found


def _cgroups(pid: int) -> str:
    return Path(f"/proc/{pid}/cgroup").read_text()


def _namespace(pid: int, kind: str) -> str:
    return os.readlink(f"/proc/{pid}/ns/{kind}")
