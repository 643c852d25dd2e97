"""A restored container's memory, filled behind it while it runs already (`memory.fill: behind`, docs/memory.md)."""

import contextlib
import dataclasses
import os
import select
import signal
from collections.abc import Sequence

from grit_runtime.criu.memory.behind import Filler, Image, Space
from grit_runtime.criu.memory.pending import Part, Pending
from grit_runtime.host import faults, inject, keeper, proc
from grit_runtime.workflow import filling, memoryfill
from grit_runtime.workflow.context import Context
from grit_runtime.workflow.memoryplan import Prepared, pages_name
from grit_runtime.workflow.operations import Record

OPERATION = "fill"
_LONGEST_DEATH = 600_000  # milliseconds


def begin(context: Context, prepared: Prepared, images: str, init: int, pids: Sequence[int]) -> bool:
    """Have what CRIU has left out filled from now on, by processes that outlive us.

    Args:
        images: the checkpoint, as people know it.
        init: the container's first process.
        pids: the container's processes, all stopped.

    Returns:
        Whether it is so. If not, it can't be done, which the log says, and nothing was begun.

    Raises:
        RestoreError: a process isn't stopped any more.
    """
    why, opened = _why_not(init), _Opened()
    try:
        if not why:
            opened.open(context, prepared, init, pids)
            if _started(context, images, opened):
                size = sum(run.size for _, split in prepared.parts.values() for run in split.runs)
                context.log.line(
                    "info", f"container {context.container}: {size >> 20} MiB of memory are filled while it runs"
                )
                return True
            why = "there are no processes for it to be had"
    except OSError as err:
        why = str(err)
        for pid in pids:
            if proc.state(pid) not in ("T", "Z"):
                raise memoryfill.not_stopped(context, pid, err) from None
    finally:
        opened.close()
    if opened.lock >= 0:
        filling.forget(filling.path(context))
    context.log.line(
        "warning", f"container {context.container}: its memory is filled before it runs, not behind it: {why}"
    )
    return False


def _why_not(init: int) -> str:
    if not inject.is_supported():
        return "this machine is no x86-64"
    if not os.path.exists(faults.DEVICE):
        return f"there is no {faults.DEVICE} (Linux 6.1)"
    if proc.namespace(init, "pid") == proc.namespace("self", "pid") or proc.inner_pid(init) != 1:
        return "others are in its pid namespace, so that it could not be ended as a whole"
    return ""


class _Opened:
    """Everything that the filling needs, open; to be closed, which is nothing to those who have begun."""

    def __init__(self) -> None:
        self.images: list[Image] = []
        self.spaces: list[Space] = []
        self.init, self.lock = -1, -1
        self.freezer = ""

    def open(self, context: Context, prepared: Prepared, init: int, pids: Sequence[int]) -> None:
        """Raises OSError."""
        self.lock = filling.lock(filling.path(context))
        self.init = os.pidfd_open(init)
        self.freezer = context.downstream.cgroup_paths(context.container).get("freezer", "")
        inner = {proc.inner_pid(pid): pid for pid in pids}
        for number, (pagemap, split) in prepared.parts.items():
            name = pages_name(pagemap)
            path = os.path.join(prepared.path, name)
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            checksums = prepared.checksums.get(name)
            at = len(self.images)
            self.images.append(Image(context.log.for_people(path), fd, pagemap.size, checksums))
            if number not in inner:
                raise ProcessLookupError(f"process {number} is gone")
            parts = [Part(run.address, run.end, at, run.offset) for run in split.runs]
            made = faults.of(inner[number])
            self.spaces.append(Space(made, Pending(parts)))
            for start, end in split.ranges:
                made.register(start, end - start)

    def descriptors(self) -> list[int]:
        """All of them."""
        found = [*(image.fd for image in self.images), *(space.faults.fd for space in self.spaces)]
        return [*found, *(fd for fd in (self.init, self.lock) if fd >= 0)]

    def close(self) -> None:
        """Close what is open."""
        for fd in self.descriptors():
            os.close(fd)


def _started(context: Context, images: str, opened: _Opened) -> bool:
    def work(beside: keeper.Beside) -> None:
        own = dataclasses.replace(context, record=Record())
        own.record.mark("memory")
        filler = Filler(opened.images, opened.spaces, stalled=context.config.timeouts.restore, beside=beside)
        filler.run()
        own.record.add(filler.done)
        own.record.write(own, OPERATION, images)
        filling.forget(filling.path(own))

    def failed(why: str) -> None:
        _end(opened)
        own = dataclasses.replace(context, record=Record())
        said = f"container {context.container} was ended: its memory could not be filled from {images}: {why}"
        own.record.write(own, OPERATION, images, said)
        filling.forget(filling.path(own))

    return keeper.start(work, failed, opened.descriptors())


def _end(opened: _Opened) -> None:
    """Kill the container, and wait until nothing of it runs: with the first process of a pid namespace the kernel ends
    all others, and lets it go last (kernel/pid_namespace.c, zap_pid_ns_processes).
    """
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(opened.init, signal.SIGKILL)
    if opened.freezer:  # on cgroup v1 a frozen process does not die
        with (
            contextlib.suppress(OSError),
            open(os.path.join(opened.freezer, "freezer.state"), "w", encoding="ascii") as stream,
        ):
            stream.write("THAWED")
    poll = select.poll()
    poll.register(opened.init, select.POLLIN)
    poll.poll(_LONGEST_DEATH)
