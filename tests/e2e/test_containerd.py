"""Real containerd with its stock shim: a container comes back in a new pod."""

import os
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pods import TOKEN, Containerd, Failed, Pod, wait

pytestmark = pytest.mark.needs("root", "runc", "criu", "containerd", "busybox", "runtime")

LOOK = (
    "i=0; while :; do i=$((i+1)); echo $i; echo $i >> /data/out;"
    f" [ -e /data/ask ] && cat /etc/hostname {TOKEN}/token /etc/hosts > /data/look; sleep 0.05; done"
)


def _started(containerd: Containerd, name: str = "old", script: str = LOOK) -> Pod:
    pod = Pod(base=containerd.base, name=name)
    containerd.run_sandbox(pod)
    containerd.run_app(pod, script)
    wait("it counts", lambda: len(pod.lines()) >= 5)
    return pod


def _counts(pod: Pod) -> None:
    seen = len(pod.lines())
    wait("it counts on", lambda: len(pod.lines()) >= seen + 3)
    lines = pod.lines()
    assert lines == list(range(lines[0], lines[0] + len(lines)))


def _gone(containerd: Containerd, pod: Pod) -> int:
    """Remove the pod with everything on disk; the last number of its output."""
    wait("it ends", lambda: containerd.status(pod.container) in ("STOPPED", ""))
    last = pod.lines()[-1]
    containerd.remove_pod(pod)
    return last


@pytest.mark.parametrize("how", ["checkpoint", "restore_name"])
def test_a_container_comes_back_in_a_new_pod(containerd: Containerd, how: str) -> None:
    old = _started(containerd)
    images = containerd.checkpoint(old, f"first-{how}", stop=True)
    last = _gone(containerd, old)

    new = Pod(base=containerd.base, name="new")
    value = str(images.parents[1]) if how == "checkpoint" else f"first-{how}"
    containerd.start_pod(new, **{how: value})

    _counts(new)
    assert new.lines()[0] == last + 1
    expected = f"new\ntoken of pod {new.uid}\n127.0.0.1 localhost new\n"
    (new.data / "ask").touch()
    look = new.data / "look"
    wait("it reads the new pod's files", lambda: look.exists() and look.read_text() == expected)
    assert containerd.status(new.container) == "RUNNING"
    assert _namespace(containerd.pid(new.container), "net") == _namespace(containerd.pid(new.sandbox), "net")
    bundle = containerd.bundle(new.container)
    assert (bundle / "init.pid").read_text() == str(containerd.pid(new.container))
    assert "org.criu.config" not in (bundle / "config.json").read_text()


def test_exec_kill_and_the_exit_code_are_those_of_any_container(containerd: Containerd) -> None:
    script = "trap 'exit 7' TERM; i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done"
    old = _started(containerd, script=script)
    images = containerd.checkpoint(old, "trap", stop=True)
    _gone(containerd, old)
    new = Pod(base=containerd.base, name="new")
    containerd.start_pod(new, checkpoint=str(images.parents[1]))
    assert containerd.ctr("task", "exec", "--exec-id", "a", new.container, "/bin/cat", "/etc/hostname") == "new\n"
    assert str(containerd.pid(new.container)) in containerd.ctr("task", "ps", new.container)
    containerd.ctr("task", "kill", "--signal", "TERM", new.container)
    wait("it ends", lambda: containerd.status(new.container) == "STOPPED")
    deleted = containerd.attempt("task", "delete", new.container)
    assert "exit with non-zero exit code 7" in deleted.stderr


def test_a_checkpoint_leaves_the_source_running(containerd: Containerd) -> None:
    pod = _started(containerd)
    images = containerd.checkpoint(pod, "running")
    assert containerd.status(pod.container) == "RUNNING"
    assert (images / "grit.json").exists()
    _counts(pod)


def test_the_same_checkpoint_starts_two_pods_and_a_second_generation(containerd: Containerd) -> None:
    old = _started(containerd)
    images = containerd.checkpoint(old, "twice", stop=True)
    last = _gone(containerd, old)
    pods = [Pod(base=containerd.base, name=f"new-{index}") for index in range(2)]
    for pod in pods:
        containerd.start_pod(pod, checkpoint=str(images.parents[1]))
    for pod in pods:
        _counts(pod)
        assert pod.lines()[0] == last + 1
    again = containerd.checkpoint(pods[0], "again", stop=True)
    last = _gone(containerd, pods[0])
    grandchild = Pod(base=containerd.base, name="grandchild")
    containerd.start_pod(grandchild, checkpoint=str(again.parents[1]))
    _counts(grandchild)
    assert grandchild.lines()[0] == last + 1


def test_the_sandbox_of_an_annotated_pod_starts_as_ever(containerd: Containerd) -> None:
    pod = Pod(base=containerd.base, name="annotated")
    containerd.run_sandbox(pod, **{"grit.dev/checkpoint": str(containerd.checkpoints / "none")})
    assert containerd.status(pod.sandbox) == "RUNNING"


def test_a_checkpoint_that_is_missing_fails_the_start_in_one_line(containerd: Containerd) -> None:
    pod = Pod(base=containerd.base, name="lost")
    containerd.run_sandbox(pod)
    with pytest.raises(Failed) as caught:
        containerd.run_app(pod, **{"grit.dev/checkpoint": str(containerd.checkpoints / "none")})
    expected = f"no such checkpoint: {containerd.checkpoints}/none/app/checkpoint is no directory"
    assert expected in str(caught.value)
    assert pod.lines() == []
    assert containerd.status(pod.container) == ""


def test_a_failed_checkpoint_leaves_the_container_running_and_says_why(containerd: Containerd) -> None:
    pod = _started(containerd)
    (containerd.checkpoints / "default").mkdir(exist_ok=True)
    (containerd.checkpoints / "default/blocked").write_text("a file where a directory must be")
    with pytest.raises(Failed, match=r"cannot write the checkpoint to .*blocked is not a directory"):
        containerd.checkpoint(pod, "blocked")
    _counts(pod)


def test_a_runtime_killed_while_it_dumps_costs_nothing(containerd: Containerd) -> None:
    """containerd kills its runtime when a request's deadline passes; the next call puts right what was left."""
    pod = _started(containerd)
    images = containerd.checkpoints / "default/killed/app/checkpoint"
    argv = ["ctr", "--address", str(containerd.base / "sock"), "-n", "k8s.io", "task", "checkpoint"]
    argv += ["--image-path", str(images), "--work-path", str(containerd.base / "w"), pod.container]
    calling = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait("the dump begins", lambda: any('"effect":"programs"' in j.read_text() for j in _journals(containerd)))
    for pid in _python_runtimes(containerd):
        os.kill(pid, signal.SIGKILL)
    assert calling.wait(30) != 0
    containerd.ctr("task", "exec", "--exec-id", "b", pod.container, "/bin/true")
    _counts(pod)
    assert not images.exists() or (images / "grit.json").exists()


@pytest.mark.parametrize("then", ["start", "delete"])
def test_a_containerd_restarted_between_create_and_start(containerd: Containerd, then: str) -> None:
    """The restored container waits for whoever asks for it next: it is started, or deleted and leaves nothing."""
    old = _started(containerd)
    containerd.checkpoint(old, f"restarted-{then}", stop=True)
    last = _gone(containerd, old)
    new = Pod(base=containerd.base, name="new")
    named = {"grit.dev/restore-name": f"restarted-{then}"}
    containerd.run_sandbox(new, **named)
    with ThreadPoolExecutor(1) as beside:
        asked = beside.submit(containerd.run_app, new, **named)
        wait("the restore begins", lambda: bool(_journals(containerd)))
        containerd.crash(after=lambda: _is_created(containerd))
        assert isinstance(asked.exception(), Failed)
    containerd.serve()
    assert containerd.status(new.container) == "CREATED"
    assert new.lines() == []
    if then == "start":
        argv = [str(containerd.runtime), "--root", containerd.runc_root, "start", new.container]
        subprocess.run(argv, env=containerd.environment(), check=True)
        _counts(new)
        assert new.lines()[0] == last + 1
    containerd.delete(new.container)
    assert _journals(containerd) == []
    another = Pod(base=containerd.base, name="another")
    containerd.start_pod(another, restore_name=f"restarted-{then}")
    _counts(another)


def test_a_restore_whose_caller_never_knew_that_it_was_done_goes_with_the_next(
    containerd: Containerd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shim kills its `create` when containerd goes (ttrpc ends the request, go-runc kills its program). Where all was
    restored by then, no task is known afterwards, and nobody starts or deletes it: its memory must not stay.
    """
    old = _started(containerd)
    containerd.checkpoint(old, "unknown", stop=True)
    last = _gone(containerd, old)
    new = Pod(base=containerd.base, name="new")
    named = {"grit.dev/restore-name": "unknown"}
    containerd.run_sandbox(new, **named)
    done, slow = containerd.base / "done", containerd.base / "slow"
    create = f'case " $* " in *" create "*) touch {done}; exec sleep 60;; esac'
    slow.write_text(f'#!/bin/sh\n"{containerd.runtime}" "$@" || exit\n{create}\n')
    slow.chmod(0o755)
    monkeypatch.setattr(containerd, "runtime", slow)
    with ThreadPoolExecutor(1) as beside:
        asked = beside.submit(containerd.run_app, new, **named)
        wait("it is restored", done.exists)
        containerd.crash(after=lambda: True)
        assert isinstance(asked.exception(), Failed)
    monkeypatch.undo()
    wait("the shim takes the rootfs away", lambda: not os.path.ismount(containerd.bundle(new.container) / "rootfs"))
    containerd.serve()
    assert containerd.status(new.container) == ""
    assert (Path(containerd.runc_root) / new.container).exists()  # so leaves a runc that is killed there, too
    another = Pod(base=containerd.base, name="another")
    containerd.start_pod(another, restore_name="unknown")
    _counts(another)
    assert another.lines()[0] == last + 1
    assert not (Path(containerd.runc_root) / new.container).exists()
    assert _journals(containerd) == []
    assert new.lines() == []


def _is_created(containerd: Containerd) -> bool:
    """Whether a container was restored and `create` has returned.

    Not before: a shim whose containerd goes kills the `create` that it waits for, and then there is no task.
    """
    created = any('"phase":"created"' in path.read_text() for path in _journals(containerd))
    return created and not _python_runtimes(containerd)


def _journals(containerd: Containerd) -> list[Path]:
    return list(containerd.state.glob("*/*/journal"))  # what is deeper comes and goes meanwhile


def _python_runtimes(containerd: Containerd) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if entry.name.isdigit() and b"boot.py" in words and str(containerd.base).encode() in words:
            found.append(int(entry.name))
    return found


def _namespace(pid: int, kind: str) -> str:
    return os.readlink(f"/proc/{pid}/ns/{kind}")
