"""Copying a set from one directory to another, a node's and a volume's: whole or not at all.

A copy that was cut short goes on with the files that aren't there whole, by their checksums.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from grit_runtime import names
from grit_runtime.agent import sets, staging
from grit_runtime.agent.checkpoints import Data
from grit_runtime.agent.sets import Place, Progress
from grit_runtime.checkpoint import integrity, locate
from grit_runtime.contents import archive
from grit_runtime.errors import CheckpointError
from grit_runtime.host import files, pool

_PIECE = 8 << 20


def copy(source: Place, target: Place, expected: Sequence[dict[str, object]], progress: Progress) -> None:
    """Copy a set, and have it appear when every byte of it is there and as its manifests say.

    Args:
        expected: what `contents` said when it was captured: another set of that name is not taken for this one.

    Raises:
        CheckpointError: the source isn't that set, or is damaged.
        BusyError: another process copies it.
        Stopped: `progress.stop` was set.
        OSError: something can't be read or written.
    """
    containers = [locate.component("container name", str(entry["name"])) for entry in expected]
    if sets.look(target, containers) is Data.WHOLE:
        return
    sets.claim(target)
    progress.total, progress.done = sets.total(expected), 0
    with staging.staging(sets.copying(target), sets.identity(expected)) as stage:
        for name, entry in zip(containers, expected, strict=True):
            images = os.path.join(source.path, name, names.IMAGES_DIR)
            known = sets.known_as(images, entry)
            checksums = integrity.recorded(known.data, images)
            copied = os.path.join(stage.path, name)
            _Copy(known.sizes, checksums, progress).tree(os.path.join(source.path, name), copied)
            inside = os.path.join(copied, names.IMAGES_DIR)
            sets.known_as(inside, entry)
            integrity.require(inside, known.sizes, checksums, pool.workers(0), progress.look)
        stage.publish(target.path)


@dataclass(slots=True)
class _Copy:
    """Copies files and directories, with nobody else's rights; anything else is refused."""

    sizes: Mapping[str, int]
    checksums: Mapping[str, tuple[str, ...]]
    progress: Progress

    def tree(self, source: str, target: str) -> None:
        os.makedirs(target, 0o700, exist_ok=True)
        for name, is_directory in sets.listed(source):
            if is_directory:
                self.tree(os.path.join(source, name), os.path.join(target, name))
            elif not self._is_there(target, name):
                self._file(os.path.join(source, name), os.path.join(target, name))
        files.sync_directory(target)

    def _is_there(self, directory: str, name: str) -> bool:
        """Whether a copy that was cut short has left this file whole, by its checksums."""
        known = os.path.basename(directory) == names.IMAGES_DIR and name in self.checksums
        try:
            if not known or os.lstat(os.path.join(directory, name)).st_size != self.sizes[name]:
                return False
            integrity.require(directory, [name], self.checksums, pool.workers(0), self.progress.look)
        except (FileNotFoundError, CheckpointError):
            return False
        self.progress.done += self.sizes[name]
        return True

    def _file(self, source: str, target: str) -> None:
        files.unlink_if_there(target)
        reading = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            writing = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                self._bytes(reading, writing, source)
                os.fsync(writing)
            finally:
                os.close(writing)
        finally:
            os.close(reading)

    def _bytes(self, reading: int, writing: int, source: str) -> None:
        """What is no hole."""
        size = os.fstat(reading).st_size
        os.ftruncate(writing, size)
        before = self.progress.done
        for offset, length in archive.segments(reading, size):
            os.lseek(writing, offset, os.SEEK_SET)
            end = offset + length
            while offset < end:
                self.progress.look()
                done = os.sendfile(writing, reading, offset, min(_PIECE, end - offset))
                if not done:
                    raise CheckpointError(f"{source} became shorter while it was copied")
                offset += done
                self.progress.done += done
        self.progress.done = before + size
