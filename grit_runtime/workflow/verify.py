"""What must be true after a restore, looked at from outside: the downstream's exit code is not enough."""

import os

from grit_runtime.errors import RestoreError
from grit_runtime.host import proc
from grit_runtime.oci.bundle import Bundle

# config.json's words for namespaces (config-linux.md) to those of /proc/PID/ns.
_KINDS = {
    "mount": "mnt",
    "network": "net",
    "pid": "pid",
    "ipc": "ipc",
    "uts": "uts",
    "user": "user",
    "cgroup": "cgroup",
    "time": "time",
}


def restored(container: str, bundle: Bundle, pids: list[int], init: int, expected: int, inner: int) -> None:
    """Check a container that the downstream says it restored.

    Args:
        pids: what is in its cgroup.
        init: the host pid that the downstream wrote to the pid file.
        expected: how many processes the images hold.
        inner: the pid of the first of them within the container.

    Raises:
        RestoreError: something isn't as it must be; every point is named.
    """
    problems = []
    if not proc.is_running(init):
        problems.append(f"its first process {init} is gone")
    else:
        problems += _wrong_namespaces(bundle, init)
        if init not in pids:
            problems.append(f"its first process {init} is not in its cgroup")
        if proc.inner_pid(init) != inner:
            problems.append(f"its first process has pid {proc.inner_pid(init)} inside instead of {inner}")
    alive = sum(proc.is_running(pid) for pid in pids)
    if alive < expected:
        problems.append(f"{alive} of {expected} processes are there")
    if problems:
        raise RestoreError(f"container {container} was restored and is not as it should be: {'; '.join(problems)}")


def _wrong_namespaces(bundle: Bundle, pid: int) -> list[str]:
    """A namespace with a path must be that one, one without must be new, and one that isn't listed must be ours."""
    wanted = {str(entry.get("type")): str(entry.get("path", "")) for entry in bundle.objects("linux", "namespaces")}
    problems = []
    for word, kind in _KINDS.items():
        mine, theirs = proc.namespace("self", kind), proc.namespace(pid, kind)
        if theirs is None or kind == "time":  # runc 1.4 gives a restored container a time namespace of its own
            continue
        if wanted.get(word):
            if theirs != f"{kind}:[{proc.namespace_of_file(wanted[word])}]":
                problems.append(f"its {word} namespace is not {wanted[word]}")
        elif word in wanted:
            if theirs == mine:
                problems.append(f"its {word} namespace is the host's")
        elif theirs != mine and word != "cgroup" and os.geteuid() == 0:
            problems.append(f"its {word} namespace is not the host's")
    return problems
