"""The TCP connections of a checkpoint (files.img, images/sk-inet.proto), and how one is restored closed.

CRIU 4.1.1 knows two ways, for all connections alike: `tcp-established` binds each to its old addresses and puts its
queues and sequence numbers back, which fails where an address isn't there; `tcp-close` makes each a socket that was
never connected (criu/sk-tcp.c, restore_one_tcp). An entry without a port at the other end is no connection for CRIU
(criu/sk-inet.c, tcp_connection), and so it makes the same socket of it, while others are restored as established.
"""

import ipaddress
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from grit_runtime.criu import images

FILE = images.FILES
_MAGIC = "FILES"
_TCP_CLOSE = 7  # include/net/tcp_states.h

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """A TCP connection; `index` is its place in the image."""

    index: int
    local: tuple[Address, int]
    remote: tuple[Address, int]
    words: int = 1
    """How many 32-bit words an address has in the image."""

    def describe(self) -> str:
        """`local -> remote` for people."""
        (here, port), (there, other) = self.local, self.remote
        return f"{here}:{port} -> {there}:{other}"


def connections(path: str) -> list[Connection]:
    """Every TCP connection in the checkpoint at `path`. Raises CheckpointError."""
    found = []
    for index, entry in enumerate(images.load(path, FILE, _MAGIC)):
        details = entry.get("isk")
        if details and details["proto"] == socket.IPPROTO_TCP and details["dst_port"]:
            found.append(
                Connection(
                    index=index,
                    local=(address(details["src_addr"]), details["src_port"]),
                    remote=(address(details["dst_addr"]), details["dst_port"]),
                    words=len(details["src_addr"]),
                )
            )
    return found


def leading_out(found: list[Connection]) -> list[Connection]:
    """Those that cannot go on in another network namespace: whose two ends aren't both in the checkpoint, or that
    aren't by a loopback address.
    """
    ends = {(connection.local, connection.remote) for connection in found}
    return [c for c in found if not (_is_loopback(c.local[0]) and (c.remote, c.local) in ends)]


def closing(closed: list[Connection]) -> images.Changes:
    """What to change in the image for these connections to be sockets that aren't connected."""
    return {
        connection.index: {
            "isk": {
                "state": _TCP_CLOSE,
                "src_port": 0,
                "dst_port": 0,
                "src_addr": [0] * connection.words,
                "dst_addr": [0] * connection.words,
            }
        }
        for connection in closed
    }


def were_closed_at_the_dump(path: str) -> bool:
    """Whether CRIU dumped with `tcp-close`; it wants that at the restore too (criu/image.c, check_img_inventory)."""
    return any(entry.get("tcp_close") for entry in images.load(path, "inventory.img", "INVENTORY"))


def address(words: Sequence[int]) -> Address:
    """CRIU keeps the kernel's words as they lie in memory. An IPv4 address in an IPv6 socket counts as IPv4."""
    packed = b"".join(word.to_bytes(4, sys.byteorder) for word in words)
    if len(packed) == 4:
        return ipaddress.IPv4Address(packed)
    found = ipaddress.IPv6Address(packed)
    return found.ipv4_mapped or found


def _is_loopback(address: Address) -> bool:
    return address.is_loopback
