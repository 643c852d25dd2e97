"""What a CRIU log says when something is known to have gone wrong, and what to do: one table, for the hint of an error
and for `diagnose`. docs/diagnose.md lists it.

The lines are those of CRIU 4.1.1 to 4.2.1 (criu/*.c, plugins/cuda/cuda_plugin.c).
"""

import re
from dataclasses import dataclass

_OUTSIDE = "a unix socket leads out of the container, which CRIU cannot dump: let the process close it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """One thing that goes wrong."""

    id: str
    line: str
    """A regular expression of a line that only this cause brings."""
    means: str
    todo: str
    any_level: bool = False
    """The line is no error of CRIU's: it says so at a level that it takes for harmless."""

    def said_by(self, line: str) -> bool:
        """Whether a line of a log says so."""
        return re.search(self.line, line) is not None


# The first that is found counts for a hint: the special stand before the general.
TABLE: tuple[Cause, ...] = (
    Cause(
        id="socket-needs-criu-4.2",
        line=r"Can't get 1:16 opt: Operation not supported",
        means="Linux 6.16 and newer refuse an option of TCP and UDP sockets that CRIU asks for before 4.2",
        todo="Linux 6.16 and newer need CRIU 4.2 for a process with a TCP or UDP socket",
    ),
    Cause(
        id="tcp-connected",
        line=r"Connected TCP socket",
        means="a process has a TCP connection, which CRIU dumps only where it is told to",
        todo="set `tcp` to inside, close or established in the configuration",
    ),
    Cause(
        id="tcp-in-flight",
        line=r"In-flight connection",
        means="a connection to a listening socket was not accepted yet",
        todo="set skip-in-flight: true for criu.dump in the configuration, or try again",
    ),
    Cause(
        id="unix-socket-outside",
        line=r"External socket is used|without peer",
        means="the other end of a unix socket is outside of the container",
        todo=_OUTSIDE,
    ),
    Cause(
        id="io-uring",
        line=r"send_fds failed \(-22\)",
        means="a descriptor of a process cannot be passed on, as an io_uring's cannot",
        todo="a process has a descriptor that cannot be passed on, such as that of an io_uring, which CRIU cannot dump",
    ),
    Cause(
        id="file-outside",
        line=r"Can't lookup mount",
        means="a process has a file open that lies on no mount of the container",
        todo="a process has a file from outside of the container open, often its stdin, stdout or stderr: give it "
        "pipes, "
        "a terminal or /dev/null instead",
    ),
    Cause(
        id="ghost-file",
        line=r"ghost file",
        means="a deleted file that is still open is larger than CRIU stores",
        todo="a deleted file that is open is too large: raise ghost-limit for criu.dump in the configuration",
    ),
    Cause(
        id="file-locks",
        line=r"file locks are hold",
        means="a process holds a file lock, which CRIU dumps only where it is told to",
        todo="set file-locks: true for criu.dump and criu.restore in the configuration",
    ),
    Cause(
        id="network-unreachable",
        line=r"inet socket back: Network is unreachable",
        means="a connected socket's peer cannot be reached from the new network namespace",
        todo="the new container's network namespace has no way there: give it one by path, as a pod has, or set "
        "`tcp: close` in the configuration",
    ),
    Cause(
        id="address-missing",
        line=r"inet socket back: Cannot assign requested address",
        means="a connected socket has the old pod's address",
        todo="the new container's network namespace lacks the address: set `tcp` to inside or close in the "
        "configuration",
    ),
    Cause(
        id="bind-missing",
        line=r"Can't bind inet socket",
        means="a listening socket is bound to the old pod's address",
        todo="a socket is bound to an address that the new container's network namespace lacks: let the program "
        "listen on "
        "all addresses",
    ),
    Cause(
        id="iptables",
        line=r"Iptables configuration failed|Locking network failed: ip6?tables-restore returned",
        means="CRIU found no iptables that works, by which it keeps packets away from a frozen TCP connection: the "
        "program is missing, or what the kernel needs for it (CONFIG_NETFILTER_XT_MARK)",
        todo="install iptables, load xt_mark, or set network-lock: nftables (or, where no connection is to be kept, "
        "skip) for criu.dump and criu.restore",
    ),
    Cause(
        id="mount-not-mapped",
        line=r"No mapping for \d+:.* mountpoint",
        means="a mount of the checkpoint's, keyed as external, has no source in the new container: config.json lacks "
        "it, "
        "as it lacks NVIDIA's mounts where `restore` went to NVIDIA's runtime, which edits `create` only",
        todo="give the new container a mount of that destination; `grit-runtime plan` names all that it lacks",
    ),
    Cause(
        id="mount-source-missing",
        line=r"Can't bind-mount at",
        means="the source of a mount is not there: a path of the old pod, often",
        todo="make that source, or give the new container another one for the destination",
    ),
    Cause(
        id="mount-no-root",
        line=r"doesn't have a proper root mount",
        means="a mount shows a part of a file system whose root is mounted nowhere in the container, such as a bind "
        "from "
        "the host that config.json does not know",
        todo="unmount it before, or name it as external for criu.dump; grit-runtime keys those that it finds "
        "in the container's mount table, plain runc those of config.json",
    ),
    Cause(
        id="mount-sharing",
        line=r"has unreachable sharing|Failed to copy sharing",
        means="a mount is shared with, or a slave of, one outside of the container",
        todo="make the mount private in the container (rprivate), or set mntns-compat-mode: true for criu.dump"
        " and criu.restore",
    ),
    Cause(
        id="link-remap",
        line=r"Can't create link remap for",
        means="an open file has lost its name, and CRIU may not make it a new one",
        todo="set link-remap: true for criu.dump",
    ),
    Cause(
        id="inotify",
        line=r"Can't dump that handle",
        means="a process watches a file (inotify, fanotify) whose path CRIU cannot find, as on an overlay",
        todo="let the process watch by polling, or watch a volume",
    ),
    Cause(
        id="freeze",
        line=r"Timeout reached\. Try to interrupt|Unable to freeze cgroup",
        means="a task did not stop in time: it is in the kernel and cannot be interrupted, or its cgroup is frozen by "
        "somebody else",
        todo="look at the state of its tasks (D in ps), and try again; raise timeout for criu.dump",
    ),
    Cause(
        id="gpu-not-brought-back",
        line=r"No need to resume devices on pid",
        means="CRIU's cuda_plugin could not ask the process for its CUDA state and took it for one without: the "
        "restore "
        "ends with success, and nothing is on the GPU. The container's device rules lack NVIDIA's, most often",
        todo="restore the same checkpoint by grit-runtime, which brings CUDA back itself; give the container its GPU",
        any_level=True,
    ),
    Cause(
        id="cuda-checkpoint-failed",
        line=r"(PAUSE|CHECKPOINT|RESUME)_DEVICES .*failed with",
        means="cuda-checkpoint refused a step; its own words stand behind",
        todo="`cuda.mode: driver` does the same without the plugin and names the step; work that does not end needs a "
        "longer cuda.lock-timeout",
    ),
    Cause(
        id="cuda-checkpoint-missing",
        line=r"Failed to launch cuda-checkpoint",
        means="CRIU's cuda_plugin found no cuda-checkpoint in PATH, or it failed at once",
        todo="install it in the PATH of the engine, or set `cuda.mode: driver`",
    ),
    Cause(
        id="plugin-missing",
        line=r"Missing required plugin",
        means="the dump was made with a plugin of CRIU's that is not loaded now",
        todo="install the plugin in CRIU's libdir; for cuda_plugin, restore by grit-runtime, which needs none",
    ),
    Cause(
        id="file-changed",
        line=r"File .* has bad (size|mode)",
        means="an open file is not what it was: another version of a library (NVIDIA's carry the driver's), or a "
        "volume "
        "that was written to",
        todo="give the new container the same image and driver, and the volume as it was",
    ),
    Cause(
        id="file-missing",
        line=r"Can't open file .* on restore",
        means="a file that a process had open is not in the new container: another image or driver version, or a "
        "rootfs without its changes",
        todo="give the new container the same image and driver; contents.rootfs-diff carries changes of the rootfs",
    ),
    Cause(
        id="file-type",
        line=r"Can't dump file \d+ of that type",
        means="a process has something open that CRIU cannot dump: a device, mostly",
        todo="for a GPU's, `cuda.mode: driver` has the driver close it first; otherwise let the process close it",
    ),
    Cause(
        id="lsm-profile",
        line=r"can't write lsm profile",
        means="the AppArmor profile or SELinux label of a process cannot be set here",
        todo="load the profile on this node, or give the new container the old one's",
    ),
    Cause(
        id="pid-taken",
        line=r"Pid \d+ do not match expected|intersects with pid",
        means="a pid that a process had is taken in the pid namespace that it is restored into",
        todo="give the new container a pid namespace of its own",
    ),
    Cause(
        id="cpu",
        line=r"CPU .*do not match run time",
        means="this machine's processor lacks what the old one's had",
        todo="restore on a machine whose processor has what the old one's had",
    ),
    Cause(
        id="no-tmp-on-read-only-root",
        line=r"Error \([^)]*\): mnt: Can't create a temporary directory: Read-only",  # a dump warns of it, and goes on
        means="the rootfs is read-only and has no directory /tmp, on which CRIU puts the old root for a moment",
        todo="give the image a directory /tmp, or the container a mount there, or a rootfs that is not read-only",
    ),
    Cause(
        id="no-space",
        line=r"No space left on device",
        means="the disk or tmpfs of the images, or of the logs, is full",
        todo="make room (`grit-runtime prune`), or give another directory",
    ),
)  # fmt: skip


def first(lines: list[str]) -> Cause | None:
    """The first of the table that an error or warning among these lines of a log says."""
    said = [line for line in lines if "Error (" in line or "Warn  (" in line]
    return next((cause for cause in TABLE if not cause.any_level and any(map(cause.said_by, said))), None)
