"""What CRIU's images don't hold, saved beside them while the container is frozen (docs/contents.md).

A part that can't be had, or is larger than the configuration allows, is left out as a whole, and the manifest and the
log say so; a part that can't be written fails the checkpoint.
"""

import os
from collections.abc import Callable
from typing import Any

from grit_runtime import names
from grit_runtime.contents import diff, podlog, queues, shm
from grit_runtime.contents.archive import TooLargeError, Writer
from grit_runtime.errors import CaptureError, GritError
from grit_runtime.host import mounts
from grit_runtime.oci.bundle import Bundle
from grit_runtime.workflow.context import Context

_SWITCHED_OFF = "switched off by the configuration"


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
