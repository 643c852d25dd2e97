"""What CRIU's images don't hold, brought back before the restore (docs/contents.md).

What does it is imported where a checkpoint has such a part.
"""

import os
from dataclasses import dataclass
from typing import Any

from grit_runtime import names
from grit_runtime.checkpoint.manifest import Manifest
from grit_runtime.errors import CheckpointError, RestoreError
from grit_runtime.host import files
from grit_runtime.host.transaction import Record, Transaction, undo_all
from grit_runtime.oci.bundle import Bundle
from grit_runtime.workflow.context import Context

_MAX_DELETED_FILES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Files of a checkpoint, by their paths; empty for what it doesn't have."""

    rootfs_diff: str = ""
    deleted_files: str = ""
    devshm: str = ""
    log: str = ""
    own: bool = False
    """Whether a manifest of ours lists them."""


def beside(images: str, manifest: Manifest | None) -> Found:
    """What a checkpoint of our own holds."""
    listed = manifest.sizes if manifest else {}
    paths = {
        name: os.path.join(images, name) if name in listed else ""
        for name in (names.ROOTFS_DIFF, names.DEV_SHM, names.CONTAINER_LOG)
    }
    return Found(
        rootfs_diff=paths[names.ROOTFS_DIFF],
        devshm=paths[names.DEV_SHM],
        log=paths[names.CONTAINER_LOG],
        own=manifest is not None,
    )


def filled(found: Any) -> frozenset[str]:
    """The destinations of mounts whose content `apply` brings."""
    return frozenset({names.SHM}) if found.devshm else frozenset()


def apply(context: Context, transaction: Transaction, found: Any, bundle: Bundle) -> None:
    """Bring everything back, before the downstream restores.

    The new rootfs is the new container's alone, and applying again gives the same result: what was applied to it stays
    there if the restore fails. The rest are effects.

    Args:
        found: a `Found`, or what has its attributes.

    Raises:
        CheckpointError: an archive holds what it may not.
        RestoreError: something can't be written.
    """
    if found.deleted_files or found.rootfs_diff:
        _apply_diff(context, found, bundle)
    if found.devshm:
        _apply_shm(context, transaction, found.devshm, bundle)
    if found.log:
        _apply_log(context, transaction, found.log, bundle)


def take_back(record: Record) -> None:
    """Undo what `apply` left outside of a container that has never run.

    Raises:
        RecoveryError: something could not be undone.
    """
    from grit_runtime.contents import podlog, shm

    kinds = (shm.Staging, shm.Placing, podlog.AppendLog)
    undo_all(tuple(entry for entry in record.effects if isinstance(entry[1], kinds)), lambda _: None)


def _apply_diff(context: Context, found: Any, bundle: Bundle) -> None:
    from grit_runtime.contents import unpack, walk

    config = context.config
    try:
        with walk.opened(os.path.realpath(bundle.rootfs)) as root:
            # The device cgroup of the new container decides what a node is good for; still, none from elsewhere.
            unpacker = unpack.Unpacker(root=root, devices=bool(getattr(found, "own", False)))
            if found.deleted_files:
                unpacker.delete(_deleted(found.deleted_files))
            if found.rootfs_diff:
                limit = config.contents.max_bytes.rootfs_diff
                unpacker.apply(found.rootfs_diff, scratch=config.archive.unpack_dir, limit=limit)
    except OSError as err:
        raise RestoreError(f"cannot change the rootfs {bundle.rootfs}: {err.strerror}") from None


def _deleted(path: str) -> list[str]:
    try:
        listed = files.read_json(path, _MAX_DELETED_FILES)
    except (OSError, ValueError) as err:
        raise CheckpointError(f"cannot read {path}: {err}") from None
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise CheckpointError(f"{path} is no list of names")
    return listed


def _apply_shm(context: Context, transaction: Transaction, archive: str, bundle: Bundle) -> None:
    from grit_runtime.contents import shm

    directory = shm.source(bundle)
    if not directory:
        _warn(context, f"{archive} was left out: the new container has a /dev/shm of its own")
        return
    staging = shm.staging(directory, archive, os.urandom(16).hex())
    try:
        transaction.do(staging)
        placing, taken = staging.placing()
        transaction.do(placing)
        transaction.undo(staging)
    except OSError as err:
        raise RestoreError(f"cannot bring back /dev/shm in {directory}: {err.strerror}") from None
    if taken:
        shown = ", ".join(repr(name) for name in taken[:5])
        _warn(context, f"{len(taken)} entries of /dev/shm were there already and left as they are: {shown}")


def _apply_log(context: Context, transaction: Transaction, archive: str, bundle: Bundle) -> None:
    from grit_runtime.contents import podlog

    try:
        place = podlog.find(context.config.contents.pod_logs, bundle.annotations)
        effect = podlog.append(place, archive, context.log.for_people(archive))
    except podlog.NoLogError as err:
        context.log.line("info", f"container {context.container}: the old log was left out: {err}")
        return
    except OSError as err:
        _warn(context, f"the old log was left out: {err.strerror}")
        return
    transaction.do(effect)


def _warn(context: Context, message: str) -> None:
    context.log.line("warning", f"container {context.container}: {message}")
