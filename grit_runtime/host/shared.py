"""Memory that processes share, as /proc shows it (proc_pid_maps(5), proc_pid_fd(5))."""

import os

# How proc_pid_maps(5) names memory that has no file system of the user's behind it.
_SHARED = ("/dev/shm/", "/memfd:", "/SYSV", "/dev/zero ")
_SEMAPHORES = "/dev/shm/sem."  # sem_open(3)


def mapped(pid: int) -> dict[tuple[str, str], str]:
    """The memory that the process has mapped and may share with others: device and inode to the path that maps shows.

    POSIX and System V shared memory, memfd and anonymous shared mappings; no named semaphore, which holds no data.
    """
    found = {}
    try:
        with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as stream:
            for line in stream:
                fields = line.rstrip("\n").split(maxsplit=5)
                is_shared = len(fields) == 6 and fields[1][3] == "s" and fields[5].startswith(_SHARED)
                if is_shared and not fields[5].startswith(_SEMAPHORES):
                    found[fields[3], fields[4]] = fields[5]
    except OSError:
        return found
    return found


def inodes(pid: int) -> set[int]:
    """The inodes of memory that it shares by mapping it or having it open: anonymous, memfd_create(2), System V."""
    found = set()
    try:
        with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as stream:
            for line in stream:
                fields = line.split(None, 5)
                if len(fields) == 6 and fields[5].startswith(("/memfd:", "/dev/zero ", "/SYSV")):
                    found.add(int(fields[4]))
        for name in os.listdir(f"/proc/{pid}/fd"):
            path = f"/proc/{pid}/fd/{name}"
            if os.readlink(path).startswith("/memfd:"):
                found.add(os.stat(path).st_ino)
    except OSError:
        return found
    return found


def find_file(pid: int, folder: str, inode: int) -> str:
    """The name in `fd` or `map_files` of a file that has no name any more, by 32 bits of its inode; empty if none."""
    base = f"/proc/{pid}/{folder}"
    try:
        names = os.listdir(base)
    except OSError:
        return ""
    for name in names:
        path = f"{base}/{name}"
        try:
            if os.stat(path).st_ino & 0xFFFFFFFF == inode and os.readlink(path).endswith(" (deleted)"):
                return path
        except OSError:
            continue
    return ""
