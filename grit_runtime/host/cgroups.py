"""Where a container's cgroups are, who is in them, and ending that.

`directories` and `clear` are for what a killed restore left: the downstream may have no state of the container yet, and
nobody but us knows of its cgroups.
"""

import contextlib
import os
import signal
import time
from collections.abc import Mapping

from grit_runtime.host import files, proc

MOUNT = "/sys/fs/cgroup"


def is_unified() -> bool:
    """cgroup v2 alone, without the v1 hierarchies beside it."""
    return os.path.exists(os.path.join(MOUNT, "cgroup.controllers"))


def directories(cgroups_path: str, container: str, *, systemd: bool) -> list[str]:
    """The directories that runc makes for `linux.cgroupsPath`, those that exist.

    Source: runc, libcontainer/cgroups/{fs,fs2,systemd}: an absolute path starts at the mount; a relative one at runc's
    own cgroup (v1) or its parent (v2, fs2/defaultpath.go); with the systemd driver it is `slice:prefix:name`; an empty
    one is the container's id.
    """
    if is_unified():
        unified = unified_path(cgroups_path, container, systemd=systemd)
        return [] if unified == "/" else _existing([MOUNT + unified])  # the root is nobody's
    inner = _inner(cgroups_path, container, systemd)
    own = proc.cgroups("self")
    found = []
    for controllers, current in own.items():
        name = controllers.removeprefix("name=")
        anchored = _anchored(inner, current)
        # cgroup v2 beside v1 has no controllers' names; runc knows it there (libcontainer/cgroups, hybridMountpoint).
        for directory in ({name, *name.split(",")} - {""} or {"unified"}) if anchored else ():
            found.append(os.path.join(MOUNT, directory, anchored))
    return _existing(found)


def unified_path(cgroups_path: str, container: str, *, systemd: bool) -> str:
    """The container's cgroup on cgroup v2, as /proc/PID/cgroup shows it; see `directories`."""
    own = os.path.dirname(proc.cgroups("self").get("", "/"))
    return "/" + _anchored(_inner(cgroups_path, container, systemd), own)


def processes(directory: str) -> list[int]:
    """The pids in a cgroup and those below it."""
    found: list[int] = []
    for path, _, _ in os.walk(directory):
        try:
            with open(os.path.join(path, "cgroup.procs"), encoding="ascii") as stream:
                found += [int(line) for line in stream]
        except OSError:
            continue
    return [pid for pid in found if pid > 0]


def end(paths: Mapping[str, str], init: int, *, timeout: float) -> None:
    """Kill a container, frozen or not, and wait until it is over, or `timeout` seconds.

    Those of its cgroup are killed that are in the pid namespace of `init`: somebody else's may be in the cgroup, too.
    One that shares the host's pid namespace is left to whoever calls. On cgroup v1 a frozen process does not die: once
    each has its signal, they are let go.

    Args:
        paths: controller to directory; of v2 one, without a name.
    """
    namespace = proc.namespace(init, "pid")
    if namespace is None or namespace == proc.namespace("self", "pid"):
        return
    pids = [
        pid for pid in processes(paths.get("") or paths.get("devices", "")) if proc.namespace(pid, "pid") == namespace
    ]
    for pid in pids:
        proc.send_signal(pid, signal.SIGKILL)
    if pids and "freezer" in paths:
        with (
            contextlib.suppress(OSError),  # it is over, and its cgroup gone
            open(os.path.join(paths["freezer"], "freezer.state"), "w", encoding="ascii") as stream,
        ):
            stream.write("THAWED")
    deadline = time.monotonic() + timeout
    while not all(proc.has_ended(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.002)


def memory_left(pid: int) -> tuple[int, str] | None:
    """How many bytes more the process' cgroups and the node can give it, and who gives the least.

    File pages that can be dropped count as free (memory.stat, `inactive_file`).

    Returns:
        Bytes, and the directory of the cgroup whose limit it is, or `the node`; None if nothing is known.
    """
    found = []
    available = _node_available()
    if available is not None:
        found.append((available, "the node"))
    unified = is_unified()
    own = proc.cgroups(pid)
    paths = [(MOUNT, own.get("", ""))] if unified else [
        (os.path.join(MOUNT, "memory"), path) for controllers, path in own.items() if "memory" in controllers.split(",")
    ]  # fmt: skip
    limit, usage = ("memory.max", "memory.current") if unified else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    for mount, path in paths:
        while path not in ("", "/"):
            left = _left(mount + path, limit, usage)
            if left is not None:
                found.append((left, mount + path))
            path = os.path.dirname(path)
    return min(found, default=None)


def _node_available() -> int | None:
    for line in files.read_text("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return None


def _left(directory: str, limit: str, usage: str) -> int | None:
    most = files.read_text(os.path.join(directory, limit)).strip()
    used = files.read_text(os.path.join(directory, usage)).strip()
    if not most.isdigit() or not used.isdigit() or int(most) >= 1 << 60:  # v1 says "no limit" by a huge number
        return None
    statistics = files.read_text(os.path.join(directory, "memory.stat"))
    names = ("inactive_file", "total_inactive_file")
    droppable = max([int(line.split()[1]) for line in statistics.splitlines() if line.split()[0] in names], default=0)
    return int(most) - int(used) + droppable


def clear(found: list[str], *, timeout: float) -> bool:
    """Kill what is in the cgroups and remove them; False if something is left after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        for directory in found:
            for pid in processes(directory):
                proc.send_signal(pid, signal.SIGKILL)
            _remove(directory)
        found = _existing(found)
        if not found:
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)


def _inner(cgroups_path: str, container: str, systemd: bool) -> str:
    return _systemd_path(cgroups_path, container) if systemd else cgroups_path or container


def _anchored(inner: str, own: str) -> str:
    """The path below a hierarchy's mount, empty for its root; runc cleans it too (libcontainer/utils, CleanPath)."""
    return os.path.normpath(inner if inner.startswith("/") else os.path.join("/", own, inner)).lstrip("/")


def _systemd_path(cgroups_path: str, container: str) -> str:
    slice_name, _, rest = (cgroups_path or f"system.slice:runc:{container}").partition(":")
    prefix, _, name = rest.partition(":")
    unit = f"{prefix}-{name}.scope" if prefix else f"{name}.scope"
    # systemd: `a-b.slice` lies in `a.slice` (systemd.slice(5)).
    words = slice_name.removesuffix(".slice").split("-") if slice_name not in ("", "-.slice") else []
    parents = ["-".join(words[: count + 1]) + ".slice" for count in range(len(words))]
    return "/" + "/".join([*parents, unit])


def _existing(paths: list[str]) -> list[str]:
    return [path for path in paths if os.path.isdir(path)]


def _remove(directory: str) -> None:
    for path, _, _ in os.walk(directory, topdown=False):
        try:
            os.rmdir(path)
        except OSError:
            continue
