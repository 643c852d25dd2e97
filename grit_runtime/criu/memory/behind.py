"""Memory filled from pages images while the processes run: what they touch first comes first.

One process does all of it, one thing after another, so that what a process has just emptied, moved or unmapped is known
before anything is put there. A page stands in a chunk of its image, which is read and compared as a whole before
anything of it is used.
"""

import errno
import os
import select
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from grit_runtime.criu.memory.pending import Part, Pending
from grit_runtime.errors import CheckpointError
from grit_runtime.host import digest, vm
from grit_runtime.host.faults import Event, Faults, Forked, Moved, Removed, Touched

_AT_ONCE = 64 << 10  # bytes around a page that is waited for, before anything else is done
_KEPT = 3  # chunks
_MOST_READS = 16
_AHEAD = 4 * digest.CHUNK
_RETRY = 0.0002  # seconds


@dataclass(frozen=True, slots=True)
class Image:
    """An open pages image."""

    path: str
    fd: int
    size: int
    checksums: tuple[str, ...] | None
    """Of its chunks; None if nobody recorded them."""


@dataclass(slots=True)
class Space:
    """A process' memory."""

    faults: Faults
    pending: Pending


class Filler:
    """Fills all of it. Whatever it raises, what is missing stays missing, and whoever touches it waits."""

    def __init__(
        self, images: Sequence[Image], spaces: Sequence[Space], *, stalled: float, beside: Callable[[], None]
    ) -> None:
        """
        Args:
            stalled: seconds without anything that could be put anywhere, after which it is given up.
            beside: called again and again, for what else is to be looked after.
        """
        self._spaces = list(spaces)
        self._chunks = _Chunks(images)
        self._stalled, self._beside = stalled, beside
        self._poll = select.poll()
        self._last = time.monotonic()
        self.done = 0
        """Bytes that were put."""

    def run(self) -> None:
        """Fill until nothing is left, and let go of the memory.

        Raises:
            CheckpointError: an image isn't what it was.
            OSError: it can't be read, there is no memory, or nothing goes on any more.
        """
        for space in self._spaces:
            self._poll.register(space.faults.fd, select.POLLIN)
        while self._spaces:
            self._beside()
            for space in self._ready():
                self._attend(space)
            space = self._spaces[0]
            if not space.pending:
                self._let_go(space)
                continue
            first = space.pending.first()
            self._put(space, first.cut(first.start, first.start + digest.STEP))

    def _ready(self) -> list[Space]:
        found = {fd for fd, _ in self._poll.poll(0)}
        return [space for space in self._spaces if space.faults.fd in found]

    def _let_go(self, space: Space) -> None:
        """All is there, or the process is gone; a fork that waits to be seen goes on, and lacks nothing either."""
        self._poll.unregister(space.faults.fd)
        self._spaces.remove(space)
        space.faults.close()

    def _attend(self, space: Space) -> None:
        """See what a process has done, in its order, and then give it what it waits for."""
        touched = []
        for _ in range(_MOST_READS):
            events = space.faults.read()
            for event in events:
                if isinstance(event, Touched):
                    touched.append(event.address // vm.PAGE * vm.PAGE)
                else:
                    self._apply(space, event)
            if not events:
                break
        for address in dict.fromkeys(touched):
            part = space.pending.at(address)
            if part is None:
                self._zero(space, address)
            else:
                self._put(space, part.cut(address, address + _AT_ONCE))

    def _apply(self, space: Space, event: Event) -> None:
        self._last = time.monotonic()
        if isinstance(event, Removed):
            space.pending.remove(event.start, event.end)
        elif isinstance(event, Moved):
            space.pending.move(event.source, event.target, event.size)
        elif isinstance(event, Forked):
            self._spaces.append(Space(event.faults, space.pending.copy()))
            self._poll.register(event.faults.fd, select.POLLIN)

    def _zero(self, space: Space, address: int) -> None:
        """A page of which the images have nothing."""
        try:
            space.faults.zero(address)
        except OSError as err:
            if err.errno == errno.EEXIST:
                space.faults.wake(address)
            elif err.errno not in (errno.EAGAIN, errno.ENOENT, errno.ESRCH):  # it is asked for again, or nobody asks
                raise

    def _put(self, space: Space, part: Part) -> None:
        """Put what is in the same chunk as its beginning; what the kernel doesn't take yet is left pending."""
        size = min(part.end - part.start, digest.CHUNK - part.offset % digest.CHUNK)
        source = self._chunks.address(part.image, part.offset)
        address, end = part.start, part.start + size
        if vm.is_zero(source, size):
            self._took(space, address, end)  # so is what is missing
            space.faults.wake(address)
            return
        most = size
        while address < end:
            done, number = space.faults.try_copy(address, source + address - part.start, min(most, end - address))
            if done:
                self._took(space, address, address + done)
                self.done += done
                address += done
            elif number == errno.EEXIST:
                self._took(space, address, address + vm.PAGE)
                space.faults.wake(address)
                address += vm.PAGE
            elif number == errno.ENOENT and most > vm.PAGE:
                most = vm.PAGE  # a part that lies in several mappings is not taken at once (mm/userfaultfd.c)
            elif number == errno.ESRCH:
                space.pending.remove(0, 1 << 64)
                return
            else:
                self._wait(number, address)
                return

    def _took(self, space: Space, start: int, end: int) -> None:
        self._last = time.monotonic()
        space.pending.remove(start, end)

    def _wait(self, number: int, address: int) -> None:
        """It isn't taken now: there is an event to be read first, or no memory."""
        if time.monotonic() > self._last + self._stalled:
            raise OSError(number, f"memory at {address:#x} cannot be filled: {os.strerror(number)}")
        if number not in (errno.EAGAIN, errno.ENOENT, errno.ENOMEM):
            raise OSError(number, f"memory at {address:#x} cannot be filled: {os.strerror(number)}")
        time.sleep(_RETRY)


class _Chunks:
    """The last chunks of the images that were read, each compared with its checksum."""

    def __init__(self, images: Sequence[Image]) -> None:
        self._images = images
        self._buffers: dict[tuple[int, int], vm.Buffer] = {}

    def address(self, image: int, offset: int) -> int:
        """Where in our memory the content of a place in an image is; it stays there until the next call."""
        key = (image, offset // digest.CHUNK)
        buffer = self._buffers.pop(key, None)
        if buffer is None:
            full = len(self._buffers) >= _KEPT
            buffer = self._buffers.pop(next(iter(self._buffers))) if full else vm.Buffer(digest.CHUNK)
            _load(self._images[image], key[1], buffer)
        self._buffers[key] = buffer  # the last is the newest
        return buffer.address + offset % digest.CHUNK


def _load(image: Image, number: int, buffer: vm.Buffer) -> None:
    start = number * digest.CHUNK
    end = min(start + digest.CHUNK, image.size)
    os.posix_fadvise(image.fd, start, _AHEAD, os.POSIX_FADV_WILLNEED)
    try:
        digest.read(image.fd, buffer, start, end - start)
    except EOFError:
        raise CheckpointError(f"image {image.path} is shorter than its pagemap says", hint="copy it again") from None
    if image.checksums is None:
        return
    made = digest.Digest()
    for offset, size in digest.steps(start, end):
        address = buffer.address + offset - start
        if not vm.is_zero(address, size):
            made.add(offset, address, size)
    if made.value() != image.checksums[number]:
        raise CheckpointError(
            f"image {image.path} is not what it was: its bytes {start} to {end} have another checksum",
            hint="copy it again",
        )
