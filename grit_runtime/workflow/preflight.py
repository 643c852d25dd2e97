"""What makes CRIU fail or hang, and can be seen before it is asked."""

import os

from grit_runtime.criu import images
from grit_runtime.errors import CaptureError
from grit_runtime.host import cgroups, proc
from grit_runtime.oci.bundle import Bundle

_MAX_NAMED = 5
_STOPPED = "T"


def problems(bundle: Bundle, path: str) -> tuple[str, ...]:
    """Why the images at `path` cannot become a container of `bundle`, one text for each cause."""
    return (*_user_namespace(bundle), *_taken_pids(bundle, path))


def _user_namespace(bundle: Bundle) -> tuple[str, ...]:
    """CRIU opens images from tasks that are in the user namespace already, to which the directories on the way, ours
    and the checkpoint's, are closed ("Unable to open tty-info.img: Permission denied").
    """
    if any(entry.get("type") == "user" for entry in bundle.objects("linux", "namespaces")):
        return ("the new container has a user namespace, into which nothing can be restored",)
    return ()


def _taken_pids(bundle: Bundle, path: str) -> tuple[str, ...]:
    """In a pid namespace that others have made (shareProcessNamespace), a restored task needs its old pid to be free:
    the kernel gives each number once (clone3(2), set_tid).
    """
    shared = [e for e in bundle.objects("linux", "namespaces") if e.get("type") == "pid" and e.get("path")]
    namespace = proc.namespace_of_file(str(shared[0]["path"])) if shared else None
    if namespace is None:
        return ()
    wanted = {tid for entry in images.load(path, "pstree.img", "PSTREE") for tid in entry["threads"]}
    taken = sorted(wanted & _tasks_within(namespace))
    if not taken:
        return ()
    listed = ", ".join(str(pid) for pid in taken[:_MAX_NAMED]) + (", ..." if len(taken) > _MAX_NAMED else "")
    where = shared[0]["path"]
    return (f"pids of the checkpoint are taken in the shared pid namespace {where}: {listed}",)


def _tasks_within(namespace: int) -> set[int]:
    """The pids and thread ids, as they are within, of all tasks in a pid namespace."""
    found: set[int] = set()
    for name in os.listdir("/proc"):
        if name.isdigit() and proc.namespace(name, "pid") == f"pid:[{namespace}]":
            found.update(proc.inner_threads(int(name)))
    return found


def require_dumpable(container: str, pids: list[int], init: int) -> tuple[str, ...]:
    """Refuse what CRIU cannot dump.

    Args:
        pids: what is in the container's cgroup.
        init: its first process.

    Returns:
        What will not be in the checkpoint, for people.

    Raises:
        CaptureError: a process is stopped, and the freezer is cgroup v1's.
    """
    stopped = [pid for pid in pids if proc.state(pid) == _STOPPED]
    if stopped and not cgroups.is_unified():
        # PTRACE_SEIZE of a stopped task waits until it traps (kernel/ptrace.c, ptrace_attach, JOBCTL_TRAPPING), which a
        # task in a frozen cgroup v1 doesn't; CRIU freezes before it seizes (criu/seize.c), and hangs.
        raise CaptureError(
            f"cannot checkpoint container {container}: {_name(stopped)} stopped, and CRIU hangs at such a process on "
            "cgroup v1",
            hint="continue it with SIGCONT first",
        )
    # CRIU dumps the first process and what is below it. Others in the cgroup it only warns of ("Unexpected process in
    # the freezer cgroup"): kubelet's probes run so, and must not make a checkpoint fail.
    strangers = [pid for pid in pids if not _descends(pid, init)]
    return (f"{_name(strangers)} no child of its first process and not in the checkpoint",) if strangers else ()


def _descends(pid: int, init: int) -> bool:
    """Whether a process is `init` or below it; True for one that is gone, or whose parent is."""
    seen = 0
    while pid != init:
        parent = proc.parent(pid)
        if parent is None:
            return True
        if parent in (0, 1) or seen > 1 << 16:
            return False
        pid, seen = parent, seen + 1
    return True


def _name(pids: list[int]) -> str:
    listed = ", ".join(f"{pid} ({' '.join(proc.command_line(pid))[:80]})" for pid in pids[:_MAX_NAMED])
    return f"process {listed} is" if len(pids) == 1 else f"{len(pids)} processes ({listed}) are"
