"""What a manifest says about a container and its machine, gathered while the container is frozen; and the logs of
failed calls.
"""

import os
import re
import shutil
import stat
import time
from typing import Any

from grit_runtime import __version__, names
from grit_runtime.criu import logs
from grit_runtime.downstream import State
from grit_runtime.host import cgroups, files, mounts, proc, run
from grit_runtime.oci.bundle import Bundle
from grit_runtime.workflow import external
from grit_runtime.workflow.context import Context
from grit_runtime.workflow.external import External
from grit_runtime.workflow.mounts import bind_mounts, provided

KEPT_LOGS = 20
_KEPT = re.compile(r"\d{8}T\d{6}Z-.+\.log")  # the names that `keep_log` gives
_MAX_PROCESSES_LISTED = 1000


def container(
    context: Context, state: State, bundle: Bundle, outside: list[External], pids: list[int]
) -> dict[str, Any]:
    """The manifest without what only the finished dump knows.

    Args:
        outside: the mounts that config.json doesn't know.
        pids: what is in its cgroup.
    """
    root = f"/proc/{state.pid}/root"
    came_from = {mount.destination: mount.candidates for mount in outside}
    table = mounts.parse(proc.mountinfo(state.pid))
    annotations = bundle.annotations
    pod = {"namespace": names.POD_NAMESPACE, "name": names.POD_NAME, "uid": names.POD_UID, "sandbox": names.SANDBOX_ID}
    return {
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "container": {
            "id": context.container,
            "bundle": state.bundle,
            "name": names.first(annotations, names.CONTAINER_NAME),
            "image": names.first(annotations, names.IMAGE_NAME),
            "imageDigest": names.first(annotations, names.IMAGE_DIGEST),
            "pod": {word: names.first(annotations, keys) for word, keys in pod.items()},
        },
        "versions": _versions(context),
        "machine": _machine(),
        "namespaces": _namespaces(state.pid),
        "processes": _processes(pids),
        "mounts": [_mount(entry, root, came_from.get(entry.mountpoint, ())) for entry in table],
        "spec": bundle.config,
    }


def keep_log(directory: str, container_id: str, source: str) -> str:
    """Keep a log of a failed call that would vanish with its directory; the oldest go beyond `KEPT_LOGS`.

    Returns:
        Where it is now, or an empty string if there was none or it can't be kept.
    """
    if not os.path.isfile(source):
        return ""
    target = os.path.join(
        directory, f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{container_id[:64]}-{os.path.basename(source)}"
    )
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        shutil.copyfile(source, target)
    except OSError:
        return ""
    files.keep_newest(directory, lambda name: _KEPT.fullmatch(name) is not None, KEPT_LOGS)
    return target


def _versions(context: Context) -> dict[str, Any]:
    timeout = context.config.timeouts.command
    return {
        "grit-runtime": __version__,
        "downstream": {"path": context.downstream.program, "version": context.downstream.version(timeout=timeout)},
        "criu": None,
        "kernel": os.uname().release,
    }


def criu_version(log: str, timeout: float) -> str | None:
    """The version of the CRIU that wrote a log, or else of the one in PATH."""
    said = logs.version(log)
    program = None if said else run.find_program("criu", run.caller_environment())
    if program is None:
        return said or None
    try:
        result = run.run([program, "--version"], timeout=timeout)
    except OSError:
        return None
    return result.out.splitlines()[0].removeprefix("Version: ") if result.ok and result.out else None


def _machine() -> dict[str, Any]:
    """What CRIU compares of two CPUs, and what people do (proc_cpuinfo(5), the first processor)."""
    found: dict[str, str] = {}
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as stream:
        for line in stream:
            name, _, value = line.partition(":")
            if not line.strip():
                break
            found[name.strip()] = value.strip()
    return {
        "architecture": os.uname().machine,
        "cpu": {
            "vendor": found.get("vendor_id"),
            "model": found.get("model name"),
            "flags": found.get("flags", "").split(),
        },
    }


def _namespaces(pid: int) -> dict[str, str | None]:
    return {kind: proc.namespace(pid, kind) for kind in proc.NAMESPACES}


def _processes(pids: list[int]) -> list[dict[str, Any]]:
    found = [{"pid": proc.inner_pid(pid), "command": proc.command_line(pid)} for pid in pids[:_MAX_PROCESSES_LISTED]]
    return [entry for entry in found if entry["pid"] is not None]


def externals(state: State, bundle: Bundle) -> list[External]:
    """The container's mounts that come from the host and that its config.json doesn't know."""
    resolved = {path: mounts.resolve_in_root(bundle.rootfs, path) for path in bind_mounts(bundle)}
    controllers = () if cgroups.is_unified() else tuple(sorted(os.listdir(cgroups.MOUNT)))
    keyed = {*provided(bundle, resolved, controllers), *bundle.strings("linux", "maskedPaths")}
    return external.find(mounts.parse(proc.mountinfo(state.pid)), mounts.own(), keyed)


def _mount(entry: mounts.MountEntry, root: str, candidates: tuple[str, ...]) -> dict[str, Any]:
    there = _lstat(root + entry.mountpoint)
    found = {
        "destination": entry.mountpoint,
        "root": entry.root,
        "source": entry.source,
        "type": entry.fstype,
        "options": entry.options.split(","),
        "directory": there is None or stat.S_ISDIR(there.st_mode),
    }
    same = [path for path in candidates if there is not None and _is(path, there)]
    return {**found, "hostPath": same[0]} if same else found


def _lstat(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except OSError:
        return None


def _is(path: str, there: os.stat_result) -> bool:
    found = _lstat(path)
    return found is not None and (found.st_dev, found.st_ino) == (there.st_dev, there.st_ino)
