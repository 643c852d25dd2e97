"""POSIX message queues (mq_overview(7)) at a container's mount of an mqueue file system.

CRIU 4.1.1 saves none, and refuses to dump a mount of one that holds any (criu/filesystems.c, dump_empty_fs: "mqueue
isn't empty"). So a container in whose IPC namespace there are queues can't be checkpointed, and the error names them.
Receiving the messages would not help: the queue itself must be gone, and then the descriptors that the container has
open would belong to a queue without a name.
"""

import os

from grit_runtime.contents import walk
from grit_runtime.host import mounts, proc

MAX_NAMED = 10


def names(pid: int) -> list[str]:
    """The queues that the first process `pid` of a container has mounted, without those of a mount that is hidden."""
    found: list[str] = []
    for entry in mounts.parse(proc.mountinfo(pid)):
        if entry.fstype == "mqueue":
            try:
                fd = walk.below(f"/proc/{pid}/root", *(word for word in entry.mountpoint.split("/") if word))
            except OSError:
                continue
            try:
                if os.fstat(fd).st_dev == _device(entry.device):
                    found += os.listdir(fd)
            finally:
                os.close(fd)
    return sorted(set(found))


def _device(text: str) -> int:
    major, _, minor = text.partition(":")
    return os.makedev(int(major), int(minor))
