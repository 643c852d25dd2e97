"""Open files and sockets, by files.img and the descriptor tables (criu: images/fdinfo.proto, sk-inet.proto,
sk-unix.proto).
"""

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from grit_runtime.criu import raw, sockets
from grit_runtime.criu.images import FILES
from grit_runtime.inspection.model import OpenFile, Socket
from grit_runtime.inspection.reader import Reader

_PROTOCOLS = {socket.IPPROTO_TCP: "tcp", socket.IPPROTO_UDP: "udp", 136: "udplite"}
_TYPES = {socket.SOCK_STREAM: "stream", socket.SOCK_DGRAM: "dgram", socket.SOCK_SEQPACKET: "seqpacket"}
# include/net/tcp_states.h, which unix sockets use too
_STATES = (
    "", "established", "syn-sent", "syn-received", "fin-wait-1", "fin-wait-2", "time-wait", "close", "close-wait",
    "last-ack", "listen", "closing",
)  # fmt: skip
# criu: images/fdinfo.proto, fd_types, in words
_WORDS = {
    "reg": "file", "inetsk": "socket", "unixsk": "unix socket", "packetsk": "packet socket",
    "netlinksk": "netlink socket", "efd": "eventfd", "ns": "namespace", "tunf": "tun", "ext": "external",
    "bpfmap": "bpf map", "ctl_tty": "tty",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """The files of the images: by their id, what kind each is and what it is called."""

    kinds: dict[int, tuple[str, str]]
    paths: dict[int, str]
    sockets: tuple[Socket, ...]


def read_files(reader: Reader) -> Files:
    """Every file that a task has open, mapped, as its program or as its working directory."""
    kinds: dict[int, tuple[str, str]] = {}
    paths: dict[int, str] = {}
    found: list[Socket] = []
    for entry in reader.messages(FILES, "FILES"):
        made = reader.attempt(f"image {FILES}", lambda entry=entry: _socket(entry), None)  # type: ignore[misc]
        if made:
            found.append(made)
        kinds[entry.id] = reader.attempt(f"image {FILES}", lambda e=entry, m=made: _described(e, m), ("", ""))  # type: ignore[misc]
        if entry.HasField("reg"):
            paths[entry.id] = kinds[entry.id][1]
    return Files(kinds=kinds, paths=paths, sockets=tuple(found))


def open_files(reader: Reader, pids: list[int], files: Files) -> tuple[OpenFile, ...]:
    """The descriptors of all tables."""
    tables: dict[int, list[int]] = {}
    for pid in pids:
        ids = reader.first(f"ids-{pid}.img", "IDS")
        if ids is None:  # older CRIUs wrote them into core-PID.img
            core = reader.first(f"core-{pid}.img", "CORE")
            ids = core.ids if core is not None and core.HasField("ids") else None
        if ids is not None:
            tables.setdefault(ids.files_id, []).append(pid)
    return tuple(file for table, owners in tables.items() for file in _table(reader, table, tuple(owners), files))


def _table(reader: Reader, table: int, owners: tuple[int, ...], files: Files) -> Iterator[OpenFile]:
    for entry in reader.messages(f"fdinfo-{table}.img", "FDINFO"):
        kind, what = files.kinds.get(entry.id, ("unknown", ""))
        yield OpenFile(pids=owners, number=entry.fd, kind=kind, what=what)


def _described(entry: Any, made: Socket | None) -> tuple[str, str]:
    kinds = entry.DESCRIPTOR.fields_by_name["type"].enum_type.values_by_number
    word = kinds[entry.type].name.lower()
    kind = _WORDS.get(word, word)
    if made:
        return kind, " ".join(part for part in (made.kind, made.state, _ends(made)) if part)
    if entry.HasField("reg"):
        return kind, "/" + raw.word(entry.reg.name).lstrip("/")
    if entry.HasField("pipe"):
        return kind, f"pipe:[{entry.pipe.pipe_id}]"
    return kind, ""


def _ends(found: Socket) -> str:
    return f"{found.local} -> {found.remote}" if found.remote else found.local


def _socket(entry: Any) -> Socket | None:
    if entry.HasField("isk"):
        return _inet(entry.isk)
    if entry.HasField("usk"):
        name = bytes(entry.usk.name).rstrip(b"\0")
        shown = (b"@" + name[1:] if name.startswith(b"\0") else name).decode(errors="backslashreplace")
        kind = f"unix {_TYPES.get(entry.usk.type, entry.usk.type)}"
        remote = f"[{entry.usk.peer}]" if entry.usk.peer else ""
        return Socket(kind=kind, state=_state(entry.usk.state), local=shown or f"[{entry.usk.ino}]", remote=remote)
    return None


def _inet(found: Any) -> Socket:
    remote = ""
    if found.dst_port:
        remote = _end(found.dst_addr, found.dst_port)
    state = _state(found.state) if found.proto == socket.IPPROTO_TCP else ""
    kind = _PROTOCOLS.get(found.proto, f"protocol {found.proto}")
    return Socket(kind=kind, state=state, local=_end(found.src_addr, found.src_port), remote=remote)


def _end(words: Any, port: int) -> str:
    address = sockets.address(list(words))
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def _state(value: int) -> str:
    return _STATES[value] if value < len(_STATES) else str(value)
