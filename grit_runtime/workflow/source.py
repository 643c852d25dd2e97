"""The checkpoint that a restore was given: a directory as it is, or an archive, unpacked while it is needed."""

import os
from dataclasses import dataclass

from grit_runtime.checkpoint import kinds
from grit_runtime.errors import CheckpointError
from grit_runtime.host import effects, files
from grit_runtime.host.transaction import Effect, Transaction
from grit_runtime.workflow.context import Context


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A checkpoint's parts, and what to undo when they aren't needed any more, in that order."""

    found: kinds.Found
    effects: tuple[Effect, ...] = ()


def open_source(context: Context, transaction: Transaction, path: str) -> Source:
    """Find out what lies at `path`, and unpack it if need be.

    Raises:
        CheckpointError: there is nothing, or no checkpoint, or an archive holds what it may not.
    """
    if os.path.isdir(path):
        return Source(found=kinds.find(path))
    if not os.path.lexists(path):
        raise CheckpointError(f"no such checkpoint: {path} is no directory")
    settings = context.config.archive
    root, container = os.path.split(context.workspace_path)
    target = os.path.join(settings.unpack_dir, f"{os.path.basename(root)}!{container}")
    try:
        # We hold the container's lock: what is there was left before a reboot, which forgets journals.
        files.remove_tree(target)
        made: list[Effect] = [*effects.missing_directories(settings.unpack_dir), effects.MakeTree(target)]
        for effect in made:
            transaction.do(effect)
    except OSError as err:
        raise CheckpointError(f"cannot unpack {path} to {target}: {err.strerror}") from None
    from grit_runtime.checkpoint import archive

    archive.unpack(path, target, max_bytes=settings.max_bytes, max_entries=settings.max_entries)
    return Source(found=kinds.unpacked(target), effects=tuple(reversed(made)))
