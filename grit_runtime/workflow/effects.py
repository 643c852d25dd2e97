"""Effects on containers. Each holds all that undoing needs, for it may be another process that undoes it."""

import os
from dataclasses import dataclass
from typing import ClassVar

from grit_runtime import names
from grit_runtime.downstream import Downstream
from grit_runtime.errors import DownstreamError, RestoreError
from grit_runtime.host import cgroups, mounts
from grit_runtime.host.transaction import Effect

_DOES_NOT_EXIST = "does not exist"  # runc and crun, of a container


def downstream_of(program: str, options: list[str], root: str) -> Downstream:
    """The downstream as an effect or a journal's header keeps it."""
    return Downstream(program=program, options=tuple(options), root=root)


@dataclass(frozen=True)
class Pause(Effect):
    """Freeze a running container; undone by resuming it."""

    kind: ClassVar[str] = "pause"
    program: str
    options: list[str]
    root: str
    container: str
    timeout: float

    def describe(self) -> str:
        return f"pause container {self.container}"

    def apply(self) -> None:
        self._downstream().require("pause", self.container, timeout=self.timeout)

    def undo(self) -> None:
        resume(self._downstream(), self.container, self.timeout)

    def _downstream(self) -> Downstream:
        return downstream_of(self.program, self.options, self.root)


@dataclass(frozen=True)
class Thaw(Pause):
    """Let a container run that its caller has paused; undone by pausing it again."""

    kind: ClassVar[str] = "thaw"

    def describe(self) -> str:
        return f"resume container {self.container}"

    def apply(self) -> None:
        resume(self._downstream(), self.container, self.timeout)

    def undo(self) -> None:
        pause(self._downstream(), self.container, self.timeout)


def pause(downstream: Downstream, container: str, timeout: float) -> None:
    """Freeze a container if it runs."""
    try:
        if downstream.state(container, timeout=timeout).status == names.RUNNING:
            downstream.require("pause", container, timeout=timeout)
    except DownstreamError as err:
        if _DOES_NOT_EXIST not in str(err):
            raise


def resume(downstream: Downstream, container: str, timeout: float) -> None:
    """Thaw a container if it is frozen and still there."""
    if downstream.call("resume", container, timeout=timeout).ok:
        return
    try:
        if downstream.state(container, timeout=timeout).status == names.PAUSED:
            downstream.require("resume", container, timeout=timeout)
    except DownstreamError as err:
        if _DOES_NOT_EXIST not in str(err):
            raise


@dataclass(frozen=True)
class RestoredContainer(Effect):
    """A container that a restore makes; undone by killing and deleting whatever there is of it.

    A runc that is killed within `restore` leaves more than `runc delete --force` knows of: tasks in its cgroups, the
    bind of the rootfs at `<root>/<id>/criu-root`, temporary binds of the new mounts' sources below the rootfs
    (prepareCriuRestoreMounts). The binds go first: `runc delete` removes the container's directory with everything
    under it, the rootfs behind that bind included.
    """

    kind: ClassVar[str] = "restored-container"
    program: str
    options: list[str]
    root: str
    container: str
    rootfs: str
    mounted: list[str]
    """What was mounted at the rootfs and below it before."""
    cgroups_path: str
    systemd: bool
    timeout: float

    def describe(self) -> str:
        return f"restore container {self.container}"

    def apply(self) -> None:
        return

    def undo(self) -> None:
        downstream = downstream_of(self.program, self.options, self.root)
        state_directory = os.path.join(self.root, self.container)
        for path in reversed(mounts.at_or_below(state_directory)):
            mounts.unmount(path)
        self._unmount_below_rootfs()
        result = None
        if os.path.lexists(state_directory):
            result = downstream.call("delete", "--force", self.container, timeout=self.timeout)
        found = cgroups.directories(self.cgroups_path, self.container, systemd=self.systemd)
        if not cgroups.clear(found, timeout=self.timeout):
            raise OSError(f"processes are left in {', '.join(found)}")
        if result and os.path.lexists(state_directory):
            raise OSError(
                f"{self.program} delete left {state_directory}: {result.err.strip()[-200:] or result.describe()}"
            )

    def rootfs_is_gone(self) -> bool:
        """Whether what was mounted at the rootfs isn't any more, or the rootfs isn't there."""
        if not os.path.isdir(self.rootfs):
            return True
        real = os.path.realpath(self.rootfs)
        return real in self.mounted and real not in mounts.at_or_below(real)

    def _unmount_below_rootfs(self) -> None:
        before = list(self.mounted)
        for path in reversed(mounts.at_or_below(self.rootfs)):
            if path in before:
                before.remove(path)
            else:
                mounts.unmount(path)


def restored_container(
    downstream: Downstream, container: str, rootfs: str, cgroups_path: str, timeout: float
) -> RestoredContainer:
    """A `RestoredContainer` that remembers what is mounted now.

    Raises:
        RestoreError: somebody else's processes are in the cgroup; undoing would kill them.
    """
    for directory in cgroups.directories(cgroups_path, container, systemd=downstream.systemd_cgroup):
        if cgroups.processes(directory):
            raise RestoreError(f"cannot restore container {container}: its cgroup {directory} is in use")
    return RestoredContainer(
        program=downstream.program,
        options=list(downstream.options),
        root=downstream.root,
        container=container,
        rootfs=rootfs,
        mounted=mounts.at_or_below(rootfs),
        cgroups_path=cgroups_path,
        systemd=downstream.systemd_cgroup,
        timeout=timeout,
    )
