"""What /proc says of a process (proc(5)). A process may be gone at any moment: the readers return None then."""

import ctypes
import os
import signal
import time

_PR_SET_PDEATHSIG = 1
_CRIU = "criu"  # how its name begins
_CLONE_NEWUTS = 0x04000000

NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")


def start_time(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; with the pid it names a process for good."""
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def resident(pid: int) -> int:
    """How many bytes of memory a process has; 0 for one that is gone (proc_pid_statm(5))."""
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as stream:
            return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def began(pid: int) -> float | None:
    """When the process started, in seconds since the epoch."""
    ticks = start_time(pid)
    with open("/proc/stat", encoding="ascii") as stream:
        boot = next((int(line.split()[1]) for line in stream if line.startswith("btime ")), None)
    return None if ticks is None or boot is None else boot + ticks / os.sysconf("SC_CLK_TCK")


def state(pid: int) -> str | None:
    """The state letter: R, S, D, T (stopped), t (traced), Z, X."""
    fields = _stat(pid)
    return fields[0] if fields else None


def is_running(pid: int) -> bool:
    """Whether the process exists and isn't a zombie."""
    return state(pid) not in (None, "Z", "X")


def has_ended(pid: int) -> bool:
    """Whether nothing of the process runs any more, not even a thread: its memory, files and devices are free."""
    return all(state(thread) in (None, "Z", "X") for thread in threads(pid))


def namespace(pid: int | str, kind: str) -> str | None:
    """The identity of a namespace, such as `net:[4026531840]`."""
    try:
        return os.readlink(f"/proc/{pid}/ns/{kind}")
    except OSError:
        return None


def namespace_of_file(path: str) -> int | None:
    """The inode that identifies the namespace bound at `path`."""
    try:
        return os.stat(path).st_ino
    except OSError:
        return None


def inner_pid(pid: int) -> int | None:
    """The pid within the innermost pid namespace of the process."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as stream:
            for line in stream:
                if line.startswith("NSpid:"):
                    return int(line.split()[-1])
    except (OSError, ValueError):
        return None
    return None


def cgroups(pid: int | str) -> dict[str, str]:
    """The process' cgroups: controller list (empty for cgroup v2) to path."""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="replace") as stream:
            parts = [line.rstrip("\n").split(":", 2) for line in stream]
    except OSError:
        return {}
    return {part[1]: part[2] for part in parts if len(part) == 3}


def mountinfo(pid: int | str) -> str:
    """The text of the process' mount table, empty if it is gone."""
    try:
        with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="surrogateescape") as stream:
            return stream.read()
    except OSError:
        return ""


def command_line(pid: int) -> list[str]:
    """The process' arguments, empty for a kernel thread or one that is gone."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as stream:
            return [os.fsdecode(word) for word in stream.read().split(b"\0") if word]
    except OSError:
        return []


def send_signal(pid: int, number: int) -> bool:
    """Send a signal; False if the process is gone."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def die_with_parent() -> None:
    """For a child about to execute a program: be killed when the parent is (prctl(2), PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def finish_undisturbed() -> None:
    """From here on a polite signal doesn't interrupt us: what goes on is short, and half of it would be worse than all.

    A handler, not SIG_IGN: that would be inherited by what we execute.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)


def with_environment(entry: str) -> list[int]:
    """The processes whose environment holds `entry` (`NAME=value`): what one of our calls started and what that
    started.
    """
    wanted = os.fsencode(entry)
    return [pid for pid in _all() if pid != os.getpid() and wanted in environment(pid) and is_running(pid)]


def _all() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def environment(pid: int) -> list[bytes]:
    """The environment that the process was started with, entry by entry; empty if there is no such process."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as stream:
            return stream.read().split(b"\0")
    except OSError:
        return []


def criu_with_open(directory: str) -> list[int]:
    """The CRIUs that have a directory open.

    CRIU gives itself a title, over its environment (setproctitle(3bsd)), once it has opened the directory of its
    images, which it has until its work is done (criu/cr-service.c, dump_using_req and restore_using_req).
    """
    try:
        wanted = os.stat(directory)
    except OSError:
        return []
    return [pid for pid in _all() if thread_name(pid, pid).startswith(_CRIU) and _has_open(pid, wanted)]


def _has_open(pid: int, wanted: os.stat_result) -> bool:
    try:
        links = [f"/proc/{pid}/fd/{fd}" for fd in os.listdir(f"/proc/{pid}/fd")]
    except OSError:
        return False
    for link in links:
        try:
            if os.path.samestat(wanted, os.stat(link)):
                return True
        except OSError:
            continue
    return False


def end_all(entry: str, images: str = "", *, grace: float, timeout: float) -> bool:
    """Wait up to `grace` seconds for the processes of `with_environment`, and CRIU with `images`, to end by themselves,
    then kill what is left.

    Returns:
        False if some still exist after `timeout` more seconds.
    """
    quiet = time.monotonic() + grace
    while left := {*with_environment(entry), *criu_with_open(images)}:
        now = time.monotonic()
        if now > quiet + timeout:
            return False
        if now >= quiet:
            for pid in left:
                send_signal(pid, signal.SIGKILL)
        time.sleep(0.02)
    return True


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the third on: the second, the name, may hold anything but ends at the last
    `)`.
    """
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stream:
            return stream.read().rpartition(")")[2].split()
    except OSError:
        return None


def parent(pid: int) -> int | None:
    """The process' parent as we see it; 0 for one outside of our pid namespace."""
    fields = _stat(pid)
    return int(fields[1]) if fields else None


def inner_threads(pid: int) -> set[int]:
    """The thread ids of the process within its innermost pid namespace."""
    found: set[int] = set()
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/status", encoding="utf-8", errors="replace") as stream:
                found.update(int(line.split()[-1]) for line in stream if line.startswith("NSpid:"))
    except OSError:
        return found
    return found


def children(pid: int) -> list[int]:
    """The processes that any thread of this one has started (/proc/PID/task/TID/children); empty if it is gone."""
    found: list[int] = []
    for thread in sorted(threads(pid)):
        try:
            with open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as stream:
                found += [int(word) for word in stream.read().split()]
        except OSError:
            continue
    return found


def moved(pid: int, counter: str) -> int:
    """The bytes that a process and those below it have read (`rchar`) or written (`wchar`), by proc_pid_io(5).

    What those have moved that are gone is not in it.
    """
    total = sum(moved(child, counter) for child in children(pid))
    try:
        with open(f"/proc/{pid}/io", encoding="ascii") as stream:
            return total + next(int(line.split()[1]) for line in stream if line.startswith(f"{counter}:"))
    except (OSError, StopIteration):
        return total


def threads(pid: int) -> set[int]:
    """The thread ids of the process as we see them; empty if it is gone."""
    try:
        return {int(name) for name in os.listdir(f"/proc/{pid}/task")}
    except OSError:
        return set()


def thread_name(pid: int, thread: int) -> str:
    """The thread's name (prctl(2), PR_SET_NAME), empty if it is gone."""
    try:
        with open(f"/proc/{pid}/task/{thread}/comm", encoding="utf-8", errors="replace") as stream:
            return stream.read().rstrip("\n")
    except OSError:
        return ""


def thread_by_inner_id(pid: int, inner: int) -> int | None:
    """The thread of the process whose id is `inner` within its innermost pid namespace, as we see it."""
    for thread in threads(pid):
        if inner_pid(thread) == inner:
            return thread
    return None


def maps_file(pid: int, name: str) -> bool:
    """Whether the process has a file mapped in whose name the bytes of `name` are."""
    try:
        with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as stream:
            return any(name in line.rpartition("/")[2] for line in stream)
    except OSError:
        return False


def open_paths(pid: int) -> list[str]:
    """What the process' descriptors lead to."""
    found = []
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            try:
                found.append(os.readlink(f"/proc/{pid}/fd/{name}"))
            except OSError:
                continue
    except OSError:
        return found
    return found


def uts_names(path: str) -> tuple[str, str]:
    """The host and domain name of a UTS namespace. Raises OSError if `path` is none."""
    libc = ctypes.CDLL(None, use_errno=True)

    def enter(namespace: int) -> None:
        if libc.setns(namespace, _CLONE_NEWUTS):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    with open("/proc/self/ns/uts", "rb") as ours, open(path, "rb") as theirs:
        enter(theirs.fileno())
        try:
            with open("/proc/sys/kernel/domainname", encoding="utf-8", errors="surrogateescape") as stream:
                return os.uname().nodename, stream.read().rstrip("\n")
        finally:
            enter(ours.fileno())
