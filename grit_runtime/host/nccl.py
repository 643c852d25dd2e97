"""Processes that talk to each other by NCCL, as far as /proc shows it (proc_pid_net(5), unix(7))."""

from grit_runtime.host import proc

# Each rank of a communicator has a socket of this name, abstract or not, for as long as the communicator lives; handles
# of device memory go through it (NCCL, src/misc/ipcsocket.cc, NCCL_IPC_SOCKNAME_STR).
_SOCKET = "tmp/nccl-socket-"
# What leads NCCL past device memory of another process, and past memory of the CPU that both map (NCCL's manual).
APART = ("NCCL_P2P_DISABLE=1", "NCCL_SHM_DISABLE=1")


def ranks(pids: list[int]) -> list[int]:
    """Those of the processes that hold a rank of a communicator."""
    return [pid for pid in pids if _sockets(pid) & _open_sockets(pid)]


def is_apart(pid: int) -> bool:
    """Whether the process was started with what keeps NCCL from sharing memory with other processes."""
    found = proc.environment(pid)
    return all(entry.encode() in found for entry in APART)


def _sockets(pid: int) -> set[str]:
    """The inodes of NCCL's sockets in the process' network namespace."""
    try:
        with open(f"/proc/{pid}/net/unix", encoding="utf-8", errors="replace") as stream:
            rows = [line.split(maxsplit=7) for line in stream]
    except OSError:
        return set()
    return {row[6] for row in rows if len(row) == 8 and _SOCKET in row[7]}


def _open_sockets(pid: int) -> set[str]:
    """The inodes of the sockets that the process has open."""
    prefix = "socket:["
    return {path[len(prefix) : -1] for path in proc.open_paths(pid) if path.startswith(prefix)}
