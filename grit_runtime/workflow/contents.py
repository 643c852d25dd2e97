"""What CRIU's images don't hold: saved beside them while the container is frozen, brought back before the restore
(docs/contents.md).

A part that can't be had, or is larger than the configuration allows, is left out as a whole, and the manifest and the
log say so; a part that can't be written fails the checkpoint.
"""

import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from grit_runtime import names
from grit_runtime.checkpoint.manifest import Manifest
from grit_runtime.contents import diff, podlog, queues, shm, unpack, walk
from grit_runtime.contents.archive import TooLargeError, Writer
from grit_runtime.errors import CaptureError, CheckpointError, GritError, RestoreError
from grit_runtime.host import files, mounts
from grit_runtime.host.transaction import Record, Transaction, undo_all
from grit_runtime.oci.bundle import Bundle
from grit_runtime.workflow.context import Context

_MAX_DELETED_FILES = 64 << 20
_SWITCHED_OFF = "switched off by the configuration"


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
    return frozenset({shm.PATH}) if found.devshm else frozenset()


def save(context: Context, pid: int, bundle: Bundle, directory: str) -> dict[str, Any]:
    """Save everything of a frozen container that was just dumped.

    Args:
        pid: its first process.
        directory: an existing one, which gets the files.

    Returns:
        The manifest's section `contents`: of each part its file, or why it was left out.

    Raises:
        CaptureError: a file can't be read or written.
    """
    wanted = context.config.contents
    parts: dict[str, tuple[bool, Callable[[], dict[str, Any]]]] = {
        "rootfs-diff": (
            wanted.rootfs_diff,
            lambda: _save_diff(context, bundle, os.path.join(directory, names.ROOTFS_DIFF)),
        ),
        "dev-shm": (wanted.dev_shm, lambda: _save_shm(context, bundle, os.path.join(directory, names.DEV_SHM))),
        "log": (wanted.log, lambda: _save_log(context, bundle, os.path.join(directory, names.CONTAINER_LOG))),
        "queues": (True, lambda: _queues(context, pid)),
    }
    return {name: _part(context, name, do) if on else {"left-out": _SWITCHED_OFF} for name, (on, do) in parts.items()}


def explained(err: CaptureError, pid: int) -> CaptureError:
    """The error of a failed dump, with a reason for it that CRIU does not spell out."""
    found = queues.names(pid)
    if found and "mqueue" in err.args[0]:
        err.args = (f"{err.args[0]}; the container has POSIX message queues: {_listed(found)}",)
        err.hint = "; ".join(word for word in ("CRIU cannot save message queues", err.hint) if word)
    return err


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
    kinds = (shm.Staging, shm.Placing, podlog.AppendLog)
    undo_all(tuple(entry for entry in record.effects if isinstance(entry[1], kinds)), lambda _: None)


def _part(context: Context, name: str, do: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return do()
    except (diff.NoDiffError, podlog.NoLogError, _NothingError) as err:
        context.log.line("info", f"container {context.container}: the checkpoint has no {name}: {err}")
        return {"left-out": str(err)}
    except TooLargeError as err:
        context.log.line("warning", f"container {context.container}: {name} was left out: {err}")
        return {"left-out": str(err)}
    except OSError as err:
        at = f" at {os.fsdecode(err.filename)}" if err.filename else ""
        raise CaptureError(f"cannot save {name} of container {context.container}{at}: {err.strerror}") from None


class _NothingError(GritError):
    """The container has no such thing."""


def _save_diff(context: Context, bundle: Bundle, target: str) -> dict[str, Any]:
    overlay = diff.overlay(bundle.rootfs, mounts.own())
    limit = context.config.contents.max_bytes.rootfs_diff
    return _archive(context, target, limit, lambda writer: diff.write(writer, overlay))


def _save_shm(context: Context, bundle: Bundle, target: str) -> dict[str, Any]:
    source = shm.source(bundle)
    if not source:
        raise _NothingError("its /dev/shm, if it has one, is its own and in CRIU's images")
    limit = context.config.contents.max_bytes.dev_shm
    return _archive(context, target, limit, lambda writer: shm.write(writer, source))


def _archive(context: Context, target: str, limit: int, write: Callable[[Writer], None]) -> dict[str, Any]:
    """Write an archive; nothing is left of one that is too large."""
    fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "wb", buffering=1 << 20) as stream:
        writer = Writer(stream=stream, limit=limit)
        try:
            write(writer)
            size = writer.close()
        except GritError:
            stream.flush()
            os.unlink(target)
            raise
    section: dict[str, Any] = {"file": os.path.basename(target), "bytes": size, "entries": writer.entries}
    if writer.left_out:
        section["not-saved"] = {"count": writer.left_out, "first": writer.noted}
        context.log.line(
            "warning",
            f"container {context.container}: {os.path.basename(target)} lacks {writer.left_out} entries,"
            f" such as {writer.noted[0]!r}",
        )
    return section


def _save_log(context: Context, bundle: Bundle, target: str) -> dict[str, Any]:
    place = podlog.find(context.config.contents.pod_logs, bundle.annotations)
    size, before = podlog.save(place, target, context.config.contents.max_bytes.log)
    section: dict[str, Any] = {"file": names.CONTAINER_LOG, "bytes": size, "source": place.path}
    if before:
        section["left-out-bytes"] = before
        context.log.line("warning", f"container {context.container}: the first {before} bytes of its log were left out")
    return section


def _queues(context: Context, pid: int) -> dict[str, Any]:
    found = queues.names(pid)
    if not found:
        return {"left-out": "the container has none"}
    context.log.line("warning", f"container {context.container}: its message queues were left out: {_listed(found)}")
    return {"left-out": f"message queues cannot be saved: {_listed(found)}"}


def _listed(found: list[str]) -> str:
    more = f" and {len(found) - queues.MAX_NAMED} more" if len(found) > queues.MAX_NAMED else ""
    return ", ".join(repr(f"/{name}") for name in found[: queues.MAX_NAMED]) + more


def _apply_diff(context: Context, found: Any, bundle: Bundle) -> None:
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
    directory = shm.source(bundle)
    if not directory:
        _warn(context, f"{archive} was left out: the new container has a /dev/shm of its own")
        return
    staging = shm.staging(directory, archive, uuid.uuid4().hex)
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
    try:
        place = podlog.find(context.config.contents.pod_logs, bundle.annotations)
        effect = podlog.append(place, archive)
    except podlog.NoLogError as err:
        context.log.line("info", f"container {context.container}: the old log was left out: {err}")
        return
    except OSError as err:
        _warn(context, f"the old log was left out: {err.strerror}")
        return
    transaction.do(effect)


def _warn(context: Context, message: str) -> None:
    context.log.line("warning", f"container {context.container}: {message}")
