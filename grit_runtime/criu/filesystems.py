"""CRIU's numbers for file systems (images/mnt.proto, fstype)."""

_AUTO = 16  # the only one for which CRIU looks at `fsname` (criu/mount.c, get_mnt_type)
_NAMES = {
    1: "proc", 2: "sysfs", 3: "devtmpfs", 4: "binfmt_misc", 5: "tmpfs", 6: "devpts", 7: "simfs", 8: "pstore",
    9: "securityfs", 10: "fusectl", 11: "debugfs", 12: "cgroup", 13: "aufs", 14: "mqueue", 15: "fuse", 17: "overlayfs",
    18: "autofs", 19: "tracefs", 23: "cgroup2",
}  # fmt: skip


def name(number: int, said: str) -> str:
    """The type of a mount.

    Args:
        number: `fstype` of the image.
        said: its `fsname`.
    """
    return said if number == _AUTO else _NAMES.get(number, f"file system {number}")
