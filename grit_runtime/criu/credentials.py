"""The privileges that the images bring, thread by thread, as CRIU gives them back (images/creds.proto, core.proto)."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from grit_runtime.criu import images
from grit_runtime.criu.images import Images
from grit_runtime.errors import CheckpointError

MAX_THREADS = 1 << 17
SECCOMP_FILTER = 2  # linux/seccomp.h; 1 is strict, 0 is none

# core.proto, task_kobj_ids_entry; config-linux.md's words for them
_NAMESPACES = {"pid_ns_id": "pid", "net_ns_id": "network", "ipc_ns_id": "ipc", "uts_ns_id": "uts", "mnt_ns_id": "mount"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """One thread's, or those of several that have the same."""

    pid: int
    """The first such process' pid within the container."""
    users: frozenset[int]
    groups: frozenset[int]
    """Real, effective, saved and for files."""
    supplementary: frozenset[int]
    capabilities: int
    """Bits of all that are permitted, effective, inheritable or ambient."""
    bounding: int
    no_new_privileges: bool
    seccomp: int
    lsm: str
    filter: int | None = None
    """The number of its last seccomp filter (`criu.filters`)."""
    rlimits: tuple[int, ...] = ()
    """The hard limits, by their numbers (bits/resource.h); all bits for none."""


def read(decoded: Images) -> tuple[Credentials, ...]:
    """What is different among the threads of a checkpoint, the first process that has it.

    Raises:
        CheckpointError: an image is missing or damaged, or there are too many threads.
    """
    dead = {process.pid for process in decoded.processes if process.zombie}
    found: dict[tuple[Any, ...], Credentials] = {}
    present, count = frozenset(decoded.files), 0
    for entry in images.load(decoded.path, "pstree.img", "PSTREE"):
        pid, threads = int(entry["pid"]), entry.get("threads", ())
        count += len(threads)
        if count > MAX_THREADS:
            raise CheckpointError(
                f"image {os.path.join(decoded.path, 'pstree.img')} holds more than {MAX_THREADS} threads"
            )
        if pid not in dead:
            for made in _of_process(decoded.path, pid, threads, present):
                found.setdefault(_all_but_pid(made), made)
    return tuple(found.values())


def of_the_host(decoded: Images) -> dict[str, int]:
    """The namespaces that a process shares with the CRIU that dumped it, and so will with the one that restores it
    (criu/namespaces.c, root_ns_mask), each with the first such pid.
    """
    (inventory,) = images.load(decoded.path, "inventory.img", "INVENTORY")[:1] or ({},)
    hosts = inventory.get("root_ids", {})
    present, found = frozenset(decoded.files), dict[str, int]()
    for process in decoded.processes:
        name = f"ids-{process.pid}.img"
        if process.zombie or name not in present:
            continue
        ids = images.first(decoded.path, name, "IDS")
        for field, word in _NAMESPACES.items():
            if field in hosts and getattr(ids, field) == hosts[field]:
                found.setdefault(word, process.pid)
    return found


def _all_but_pid(made: Credentials) -> tuple[Any, ...]:
    return (
        made.users, made.groups, made.supplementary, made.capabilities, made.bounding, made.no_new_privileges,
        made.seccomp, made.lsm, made.filter, made.rlimits,
    )  # fmt: skip


def _of_process(path: str, pid: int, threads: Iterable[int], present: frozenset[str]) -> list[Credentials]:
    found, inherited, older = list[Credentials](), 0, 0
    for thread in dict.fromkeys((pid, *threads)):
        name = f"core-{thread}.img"
        if name not in present:
            raise CheckpointError(f"checkpoint {path} is damaged: process {pid} has a thread {thread}, and no {name}")
        core = images.first(path, name, "CORE")
        if thread == pid:
            inherited = int(core.tc.old_seccomp_mode)  # before CRIU 3.13 a process' threads had one in common
            older = int(core.tc.old_seccomp_filter)
        if not core.HasField("thread_core") or not core.thread_core.HasField("creds"):
            raise CheckpointError(f"image {os.path.join(path, name)} is damaged: it has no credentials")
        own = core.thread_core
        mode = int(own.seccomp_mode) if own.HasField("seccomp_mode") else inherited
        made = _made(pid, own.creds, mode)
        if mode == SECCOMP_FILTER:
            made = replace(made, filter=int(own.seccomp_filter) if own.HasField("seccomp_filter") else older)
        if thread == pid:
            made = replace(made, rlimits=tuple(int(each.max) for each in core.tc.rlimits.rlimits))
        found.append(made)
    return found


def _made(pid: int, creds: Any, seccomp: int) -> Credentials:
    return Credentials(
        pid=pid,
        users=frozenset((creds.uid, creds.euid, creds.suid, creds.fsuid)),
        groups=frozenset((creds.gid, creds.egid, creds.sgid, creds.fsgid)),
        supplementary=frozenset(creds.groups),
        capabilities=_bits(creds.cap_prm) | _bits(creds.cap_eff) | _bits(creds.cap_inh) | _bits(creds.cap_amb),
        bounding=_bits(creds.cap_bnd),
        no_new_privileges=bool(creds.no_new_privs),
        seccomp=seccomp,
        lsm=str(creds.lsm_profile),
    )


def _bits(words: Iterable[int]) -> int:
    """A set of capabilities as 32-bit words, the low one first."""
    return sum(word << 32 * number for number, word in enumerate(words))
