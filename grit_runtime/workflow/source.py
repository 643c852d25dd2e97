"""The checkpoint that a restore was given: a directory as it is, or an archive, unpacked while it is needed."""

import os
import stat
from dataclasses import dataclass

from grit_runtime import names
from grit_runtime.checkpoint import kinds
from grit_runtime.errors import CheckpointError
from grit_runtime.host import beneath, effects, files, pool
from grit_runtime.host.beneath import Pin
from grit_runtime.host.transaction import Effect, Transaction
from grit_runtime.workflow.context import Context


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A checkpoint's parts, and what to undo when they aren't needed any more, in that order."""

    found: kinds.Found
    effects: tuple[Effect, ...] = ()


def open_source(context: Context, transaction: Transaction, path: str, pin: Pin | None) -> Source:
    """Find out what lies at `path`, and unpack it if need be.

    Raises:
        CheckpointError: there is nothing, or no checkpoint, or an archive holds what it may not.
    """
    pin = hold(context, path, pin)
    if stat.S_ISDIR(pin.stat().st_mode):
        return Source(found=kinds.find(pin.path, pin.shown))
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

    archive.unpack(pin.path, target, max_bytes=settings.max_bytes, max_entries=settings.max_entries, held=True)
    return Source(found=kinds.unpacked(target), effects=tuple(reversed(made)))


def hold(context: Context, path: str, pin: Pin | None) -> Pin:
    """Open the checkpoint, and verify who made it, where that is asked for.

    From here on it is known by a descriptor: what has that name later doesn't matter.

    Args:
        pin: what is there, if it was opened already.

    Raises:
        CheckpointError: there is nothing, or no signature that it needs.
    """
    try:
        pin = pin or beneath.pin(path)
    except OSError:
        raise CheckpointError(f"no such checkpoint: {path} is no directory") from None
    context.log.shown[pin.path] = pin.shown
    _require_signature(context, pin)
    return pin


def _require_signature(context: Context, pin: Pin) -> None:
    """Verify who made the checkpoint, before anything of it is parsed: where the configuration asks for it, and where
    there is a signature and keys to verify it with.
    """
    site = context.config.trust
    directory = stat.S_ISDIR(pin.stat().st_mode)
    file = os.path.join(pin.path, names.SIGNATURE) if directory else pin.shown + names.SIGNATURE_SUFFIX
    if not site.require_signature and not (site.keys and os.path.lexists(file)):
        return
    from grit_runtime.checkpoint import signature

    workers = pool.workers(context.config.memory.workers)
    if not directory:
        signature.require_file(pin.path, file, site.keys, workers)
        return
    if not os.path.lexists(os.path.join(pin.path, names.MANIFEST)):
        # What lies beside the images would not be signed (`kinds.find`).
        raise CheckpointError(
            f"the signature of checkpoint {pin.shown} cannot be verified: it has no {names.MANIFEST}",
            hint="checkpoints of grit-runtime's own are signed, and archives",
        )
    signature.require_directory(pin.path, site.keys, workers)
