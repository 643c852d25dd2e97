"""What becomes of TCP connections at a restore, by the configuration's `tcp`.

A pod has another address than the one before it, so a connection by the old one cannot go on; one within the container
by a loopback address can. CRIU decides for all or none. So the staged images say of those that cannot go on that they
aren't connected: their process sees ENOTCONN when it reads, EPIPE when it writes, and a hang-up when it polls.
"""

from dataclasses import dataclass

from grit_runtime.config import Config
from grit_runtime.criu import sockets
from grit_runtime.criu.images import Changes
from grit_runtime.errors import CheckpointError
from grit_runtime.names import TCP_CLOSE, TCP_INSIDE, TCP_REFUSE


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What the restore does about connections."""

    criu: dict[str, bool | str]
    """Options that CRIU needs."""
    rewrites: dict[str, Changes]
    """What changes in the staged images."""
    closed: tuple[str, ...] = ()
    """The connections that don't go on, for people."""


def decide(config: Config, path: str, files: tuple[str, ...], *, all_established: bool) -> Decision:
    """Look at the connections in the images at `path`.

    Args:
        all_established: the caller said `--tcp-established`, which counts more than the configuration.

    Raises:
        CheckpointError: there are connections and the configuration refuses them, or an image is damaged.
    """
    if sockets.were_closed_at_the_dump(path):
        return Decision(criu={"tcp-close": True}, rewrites={})
    if sockets.FILE not in files or config.criu_restore.get("tcp-close"):
        return Decision(criu={}, rewrites={})
    found = sockets.connections(path)
    mode = "established" if all_established or config.criu_restore.get("tcp-established") else config.tcp
    if mode == TCP_REFUSE and found:
        raise CheckpointError(
            f"{path} holds the TCP connection {found[0].describe()}, and the configuration says `tcp: refuse`",
            hint="set `tcp` to inside, close or established",
        )
    closed = found if mode == TCP_CLOSE else sockets.leading_out(found) if mode == TCP_INSIDE else []
    return Decision(
        criu={"tcp-established": True} if len(closed) < len(found) else {},
        rewrites={sockets.FILE: sockets.closing(closed)} if closed else {},
        closed=tuple(connection.describe() for connection in closed),
    )
