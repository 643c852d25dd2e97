"""A TCP proxy that cuts connections after so many bytes."""

import contextlib
import socket
import struct
import threading
import time
from dataclasses import dataclass, field

UP, DOWN = "up", "down"


@dataclass(slots=True)
class Cutter:
    """Stands before a port of 127.0.0.1; a context manager."""

    target: int
    port: int = 0
    direction: str = UP
    budget: int | None = None
    """Bytes in that direction, over all connections, after which every connection is cut; None: never."""
    times: int = 1
    """How often: then it is a plain proxy."""
    reset: bool = True
    """By RST, or in good order in the middle of a message."""
    pace: int = 0
    """Bytes a second in each direction of a connection; 0: as many as there are."""
    moved: dict[str, int] = field(default_factory=lambda: {UP: 0, DOWN: 0})
    cuts: int = 0
    _listener: socket.socket | None = None
    _pairs: list[tuple[socket.socket, socket.socket]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _left: int = 0

    def __enter__(self) -> "Cutter":
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        self._left = self.budget or 0
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._listener is not None
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._cut()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self.target))
                except OSError:
                    client.close()
                    continue
                with self._lock:
                    self._pairs.append((client, server))
                for one, other, direction in ((client, server, UP), (server, client, DOWN)):
                    threading.Thread(target=self._pump, args=(one, other, direction), daemon=True).start()

    def _pump(self, one: socket.socket, other: socket.socket, direction: str) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(1 << 16):
                with self._lock:
                    allowed, cut = self._allowed(data, direction)
                    self.moved[direction] += len(allowed)
                other.sendall(allowed)
                if self.pace:
                    time.sleep(len(allowed) / self.pace)
                if cut:
                    self._cut()
                    return
            other.shutdown(socket.SHUT_WR)

    def _allowed(self, data: bytes, direction: str) -> tuple[bytes, bool]:
        if self.budget is None or direction != self.direction or self.cuts >= self.times:
            return data, False
        if self._left > len(data):
            self._left -= len(data)
            return data, False
        kept, self._left, self.cuts = data[: self._left], self.budget, self.cuts + 1
        return kept, True

    def _cut(self) -> None:
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for sockets in pairs:
            for one in sockets:
                with contextlib.suppress(OSError):
                    if self.reset:
                        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    one.shutdown(socket.SHUT_RDWR)
                one.close()
