"""Putting right what a killed call left, from its journal alone."""

import os
from collections.abc import Callable, Iterator

from grit_runtime import names
from grit_runtime.errors import BusyError, DownstreamError, GritError
from grit_runtime.host import files, proc
from grit_runtime.host.transaction import Record, append, define_later, read_journal, undo_all
from grit_runtime.host.workspace import Workspace, open_existing
from grit_runtime.workflow import effects

CREATED = "created"  # the phase of a restored container that waits for `start`: nothing is under way


@define_later
def _define_effects() -> None:
    """A journal names effects by their kind: the modules that define them must be there."""
    from grit_runtime.contents import podlog, shm  # noqa: F401
    from grit_runtime.host import effects, hugepages, links  # noqa: F401
    from grit_runtime.workflow import cudastate, linkremap  # noqa: F401


def settle(workspace: Workspace) -> Record | None:
    """Finish or undo what a killed call left in a workspace that we have locked.

    Returns:
        The journal of a restored container that waits for `start`: that one is left as it is. Otherwise None, and the
        journal is gone.

    Raises:
        RecoveryError: something could not be undone; the journal stays.
    """
    record = read_journal(workspace.journal)
    if record is not None and record.phase == CREATED:
        return record
    unwind(workspace, record)
    return None


def unwind(workspace: Workspace, record: Record | None) -> None:
    """Finish a capture whose images were complete, undo anything else, and empty the workspace."""
    if record is not None and record.phase == names.PUBLISHING:
        from grit_runtime.workflow import publish

        publish.finish(record.header)
    elif record is not None:
        fd = os.open(workspace.journal, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            undo_all(record.effects, lambda entry: append(fd, entry))
        finally:
            os.close(fd)
    for name in os.listdir(workspace.path):
        path = workspace.file(name)
        if os.path.isdir(path) and not os.path.islink(path):
            files.remove_tree(path)
        else:
            os.unlink(path)


def one(path: str) -> str:
    """Settle the workspace at `path`, whatever its container is; how it went, for people.

    Raises:
        GritError: something could not be undone; the journal stays.
    """
    try:
        workspace = open_existing(path, timeout=0)
    except BusyError:
        return "in use"
    if workspace is None:
        return "gone meanwhile"
    try:
        record = settle(workspace)
    except BaseException:
        workspace.close()
        raise
    if record is None:
        workspace.close(remove=True)
        return "recovered"
    given_up = is_given_up(record)
    if not given_up and _exists(record):
        workspace.close()
        return "restored, waits for start"
    try:
        unwind(workspace, record)
    except BaseException:
        workspace.close()
        raise
    workspace.close(remove=True)
    return f"recovered: the restored container {'was given up' if given_up else 'is gone'}"


def other_restores(state_dir: str, mine: str, warn: Callable[[str], None]) -> None:
    """Undo what killed restores of other containers left.

    Nobody may ever call for those again: containerd 2 forgets a container whose `create` was killed, and makes one of
    another id. A kill that came after the restore was done, and before its caller knew, leaves a whole container that
    waits, with all its memory. A killed dump is left to its own next call, for it may take its time to end.

    Args:
        mine: the workspace of the container that is being worked on.
        warn: gets what could not be undone.
    """
    for path, container in workspaces(state_dir):
        try:
            record = read_journal(os.path.join(path, names.JOURNAL)) if path != mine else None
            if record is None or record.header.get("operation") != "restore":
                continue
            if record.phase != CREATED or is_given_up(record):
                one(path)
        except (GritError, OSError) as err:
            warn(f"what a killed restore of container {container} left: {err}")


def is_given_up(record: Record) -> bool:
    """Whether nobody will start a restored container that waits.

    A shim whose `create` was killed takes the rootfs away at once (containerd, NewContainer in
    cmd/containerd-shim-runc-v2/runc/container.go); one whose `create` returned keeps it until the container is deleted.
    Only who sees the mounts that the restore saw can tell.
    """
    if record.header.get("mount-namespace") != proc.namespace("self", "mnt"):
        return False
    return any(isinstance(each, effects.RestoredContainer) and each.rootfs_is_gone() for _, each in record.effects)


def _exists(record: Record) -> bool:
    header = record.header
    downstream = effects.downstream_of(header["program"], header["options"], header["root"])
    try:
        downstream.state(header["container"], timeout=header["timeout"])
    except DownstreamError:
        return False
    return True


def roots(state_dir: str) -> list[str]:
    """The directories that hold the workspaces of one downstream root each."""
    try:
        names = [name for name in sorted(os.listdir(state_dir)) if not name.startswith(".")]
        return [path for name in names if os.path.isdir(path := os.path.join(state_dir, name))]
    except OSError:
        return []


def workspaces(state_dir: str) -> Iterator[tuple[str, str]]:
    """Every workspace that exists, as its path and the container's id."""
    for root in roots(state_dir):
        for container in sorted(os.listdir(root)):
            yield os.path.join(root, container), container
