"""Captures that a reboot interrupted. Their journal was on tmpfs and is gone; what they left is on disk.

Within one boot the journal alone says what becomes of a `.grit-partial`. So a capture notes which boot of which machine
it writes in, and only what an earlier boot of this machine left is settled here: another machine may be writing to the
same storage.
"""

import os
import stat
import time
from collections.abc import Iterator

from grit_runtime import names
from grit_runtime.checkpoint import catalogue, integrity, manifest
from grit_runtime.errors import BusyError, CheckpointError
from grit_runtime.host import files
from grit_runtime.host.workspace import open_workspace
from grit_runtime.workflow import publish

_MACHINE_ID = "/etc/machine-id"
_BOOT_ID = "/proc/sys/kernel/random/boot_id"


def mark(partial: str) -> None:
    """Note in `.grit-partial` who writes it. A link has its text from the moment on that it is there."""
    os.symlink(_writer(), os.path.join(partial, names.WRITER))


def is_from_before_a_reboot(images: str) -> bool:
    """Whether a capture into this directory was begun in an earlier boot of this machine, and never ended.

    Where others may write, nobody knows who says so.
    """
    partial = os.path.join(images, names.PARTIAL)
    try:
        there = os.lstat(partial)
        if not all(map(_is_ours_alone, (os.stat(images), there))):
            return False
        if not os.listdir(partial):  # it had just been made, or was about to be removed
            return there.st_mtime < time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        written = os.readlink(os.path.join(partial, names.WRITER))
    except OSError:
        return False
    machine, _, boot = written.rpartition("/")
    mine, _, now = _writer().rpartition("/")
    return bool(machine_and_boot()[0]) and machine == mine and boot != now


def _is_ours_alone(there: os.stat_result) -> bool:
    return stat.S_ISDIR(there.st_mode) and there.st_uid == os.geteuid() and not there.st_mode & 0o022


def settle(images: str) -> str:
    """Finish what a reboot interrupted if it is complete, or take it away; an older checkpoint there stays until then.

    Returns:
        What became of it, in words; empty if a reboot left nothing here.

    Raises:
        OSError: a file can't be moved or removed.
    """
    if not is_from_before_a_reboot(images):
        return ""
    partial = os.path.join(images, names.PARTIAL)
    if _is_whole(partial, images):
        publish.publish(images)
        return "the checkpoint was complete, and is finished now"
    if _moving_had_begun(partial, images):
        # Without `.grit-partial` it would look like plain images.
        return "a damaged checkpoint, left as it is: remove it"
    files.remove_tree(partial)
    files.sync_directory(images)
    return "an unfinished dump was removed"


def sweep(roots: tuple[str, ...], unpack_dir: str, state_dir: str) -> Iterator[str]:
    """Settle what reboots left below the checkpoint roots, and archives that were unpacked for a restore that is no
    more; what became of each, in words.

    Raises:
        OSError: a file can't be moved or removed.
    """
    for root in dict.fromkeys(map(os.path.realpath, roots)):
        for path, images in catalogue.unfinished(root):
            outcome = settle(f"/proc/self/fd/{images}")
            if outcome:
                yield f"{path}: {outcome}"
    for name in sorted(os.listdir(unpack_dir)) if os.path.isdir(unpack_dir) else ():
        root, separator, container = name.partition("!")
        if separator and container and _remove_unpacked(os.path.join(unpack_dir, name), state_dir, root, container):
            yield f"{os.path.join(unpack_dir, name)}: removed, no restore needs it"


def _remove_unpacked(path: str, state_dir: str, root: str, container: str) -> bool:
    """Remove an unpacked archive, unless its restore is under way: then it holds the container's lock, or a journal."""
    try:
        workspace = open_workspace(os.path.join(state_dir, root, container), timeout=0)
    except BusyError:
        return False
    open_journal = os.path.exists(workspace.journal)
    try:
        if not open_journal:
            files.remove_tree(path)
    finally:
        workspace.close(remove=not open_journal)
    return not open_journal


def _moving_had_begun(partial: str, images: str) -> bool:
    """Whether files of the dump may lie among the images already: its manifest is the last that moves."""
    there = os.path.lexists(os.path.join(images, names.MANIFEST))
    return os.path.lexists(os.path.join(partial, names.MANIFEST)) and not there and len(os.listdir(images)) > 1


def _is_whole(partial: str, images: str) -> bool:
    """Whether each file that the manifest lists is there and what it was: in `.grit-partial`, or moved up already."""
    path = os.path.join(partial, names.MANIFEST)
    try:
        found = manifest.checked(path, files.read_json(path, manifest.MAX_BYTES))
        expected = integrity.recorded(found.data, path)
        places = {}
        for name, size in found.sizes.items():
            if "/" in name:
                return False
            place = os.path.join(partial, name)
            place = place if os.path.lexists(place) else os.path.join(images, name)
            if os.lstat(place).st_size != size:
                return False
            places[name] = integrity.Place(place, 0, size)
        return not integrity.differing(places, expected, 1)
    except (OSError, ValueError, CheckpointError):
        return False


def machine_and_boot() -> tuple[str, str]:
    """What names this machine (machine-id(5)), empty if nothing does, and this boot of it."""
    return files.read_text(_MACHINE_ID).strip(), files.read_text(_BOOT_ID).strip()


def _writer() -> str:
    machine, boot = machine_and_boot()
    return f"{machine}/{os.uname().nodename}/{boot}"
