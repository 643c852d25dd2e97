"""Checks of directories, some made for each of them, and of what killed calls left. Pure."""

from collections.abc import Callable
from dataclasses import dataclass

from grit_runtime.doctor.facts import Facts, Folder
from grit_runtime.doctor.model import Check, Verdict, fail, ok, skip, warn
from grit_runtime.inspection import words

_LITTLE = 1 << 30  # bytes
_SLOW = 100 << 20  # bytes a second


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderCheck:
    """A check of one directory."""

    id: str
    judge: Callable[[Facts, Folder], Verdict]


def folder_owner(_: Facts, folder: Folder) -> Verdict:
    """Who could change what is in it."""
    if folder.trusted:
        return fail(
            f"{folder.trusted}: who can write there chooses what containers become",
            f"give it to root alone: chown root: {folder.path} && chmod go-w {folder.path}",
        )
    return ok("root's alone")


def folder_space(facts: Facts, folder: Folder) -> Verdict:
    """Room, compared with the node's memory: a checkpoint is as large as what its container uses."""
    free = f"{words.size(folder.free)} free"
    if folder.free < _LITTLE:
        return fail(free, f"make room: checkpoints need what their containers have in memory ({folder.use})")
    if folder.free < facts.memory:
        return warn(
            f"{free}, which is less than the node's memory of {words.size(facts.memory)}",
            "nothing, if containers are small; else make room",
        )
    return ok(free)


def folder_speed(_: Facts, folder: Folder) -> Verdict:
    """How fast it is, by 32 MiB."""
    if folder.write is None or folder.read is None:
        return skip("not measured")
    rate = f"writes {words.size(int(folder.write))} a second, reads {words.size(int(folder.read))}"
    if min(folder.write, folder.read) < _SLOW:
        return warn(rate, "keep checkpoints on a faster disk: a container is frozen until its own is written")
    return ok(rate)


FOLDER_CHECKS = (
    FolderCheck(id="storage.owner", judge=folder_owner),
    FolderCheck(id="storage.space", judge=folder_space),
    FolderCheck(id="storage.speed", judge=folder_speed),
)


def storage_roots(facts: Facts) -> Verdict:
    """Whether there is a checkpoint root at all."""
    roots = [folder for folder in facts.folders if folder.use == "checkpoints"]
    there = [folder.path for folder in roots if folder.exists]
    if not there:
        listed = ", ".join(folder.path for folder in roots)
        path = roots[0].path if roots else "/var/lib/grit-runtime/checkpoints"
        return warn(
            f"none of the checkpoint roots is there: {listed}",
            "make one, or set `checkpoint-roots`",
            f"mkdir -p -m 700 {path}",
        )
    return ok(", ".join(there))


def storage_state(facts: Facts) -> Verdict:
    """Journals must not outlive a reboot."""
    if facts.state_fs in ("tmpfs", "ramfs"):
        return ok(f"{facts.config.state_dir} is on {facts.state_fs}")
    where = facts.state_fs or "an unknown file system"
    return warn(
        f"{facts.config.state_dir} is on {where}: journals of killed calls outlive a reboot there, "
        "and name processes and mounts that may be others by then",
        "set `state-dir` to a directory on tmpfs",
    )


def leftovers(facts: Facts) -> Verdict:
    """What killed calls left."""
    left = facts.leftovers
    if left.damaged:
        return fail(f"journals can't be read: {'; '.join(left.damaged)}", "see docs/architecture.md, Transactions")
    if left.journals:
        count = words.count(len(left.journals), "container")
        return warn(
            f"killed calls left something of {count}: {', '.join(left.journals[:5])}",
            "grit-runtime recover",
            "grit-runtime recover",
        )
    if left.unpacked:
        return warn(
            f"unpacked archives that nobody uses: {', '.join(left.unpacked[:5])}",
            "remove them: a reboot came between",
            *(f"rm -r {path}" for path in left.unpacked[:5]),
        )
    return ok("nothing is left of killed calls")


CHECKS = (
    Check(id="storage.roots", judge=storage_roots),
    Check(id="storage.state", judge=storage_state),
    Check(id="leftovers", judge=leftovers),
)
