"""The simulated GPU: `python gpu.py DIRECTORY`. Listens at DIRECTORY/socket, says in DIRECTORY/state who has how much.

DIRECTORY/settings (JSON) is read at every change: driver, uuid, name, memory (MiB), taken (MiB that others have), mig,
compute, mps (pids), mirrored (1: NVML shows a second GPU, which has what the first has).
A message is {u32 operation, u32 words, u64 bytes} and, for an upload, the words.
"""

import json
import os
import socket
import struct
import sys
import threading

ALLOCATE, UPLOAD, DOWNLOAD, STEP = 1, 2, 3, 4
HEADER = struct.Struct("=IIQ")
DEFAULTS = {
    "driver": "580.00.00", "uuid": "GPU-00000000-0000-0000-0000-000000000001", "name": "Simulated GPU", "memory": 1024,
    "taken": 0, "mig": 0, "compute": 0, "mps": [], "mirrored": 0,
}  # fmt: skip


class Gpu:
    """Who has how much, and the lock over it."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.lock = threading.Lock()
        self.used: dict[int, int] = {}
        self.write()

    def settings(self) -> dict:
        """What the test has set."""
        try:
            with open(f"{self.directory}/settings") as stream:
                return {**DEFAULTS, **json.load(stream)}
        except FileNotFoundError:
            return DEFAULTS

    def write(self) -> None:
        """What NVML says."""
        now = self.settings()
        used = sum(self.used.values()) + (now["taken"] << 20)
        text = [f"{now['driver']}", now["uuid"], now["name"], str(now["memory"] << 20), str(used)]
        text += [str(now["mig"]), str(now["compute"]), str(len(self.used))]
        text += [f"{pid} {size}" for pid, size in self.used.items()]
        text += [str(len(now["mps"])), *(str(pid) for pid in now["mps"]), str(now["mirrored"])]
        with open(f"{self.directory}/state.new", "w") as stream:
            stream.write("\n".join(text) + "\n")
        os.rename(f"{self.directory}/state.new", f"{self.directory}/state")

    def allocate(self, pid: int, size: int) -> int:
        """A CUresult."""
        with self.lock:
            now = self.settings()
            if sum(self.used.values()) + size + (now["taken"] << 20) > now["memory"] << 20:
                return 2
            self.used[pid] = self.used.get(pid, 0) + size
            self.write()
            return 0

    def free(self, pid: int) -> None:
        """Forget what a process had."""
        with self.lock:
            self.used.pop(pid, None)
            self.write()


def exactly(connection: socket.socket, size: int) -> bytes:
    """That many bytes, or EOFError."""
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def serve(gpu: Gpu, connection: socket.socket) -> None:
    """One process' context."""
    pid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    words: list[int] = []
    try:
        while True:
            operation, count, size = HEADER.unpack(exactly(connection, HEADER.size))
            if operation == ALLOCATE:
                connection.sendall(struct.pack("=q", gpu.allocate(pid, size)))
                words = [0] * count
            elif operation == UPLOAD:
                words = list(struct.unpack(f"={count}I", exactly(connection, 4 * count)))
                connection.sendall(struct.pack("=q", 0))
            elif operation == DOWNLOAD:
                connection.sendall(struct.pack(f"={len(words)}I", *words))
            elif operation == STEP:
                words = [(word * 3 + 1) % 1000003 for word in words]
                connection.sendall(struct.pack("=q", sum(words)))
    except (EOFError, OSError):
        gpu.free(pid)
    connection.close()


def main(directory: str) -> None:
    """Serve until killed."""
    gpu = Gpu(directory)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(f"{directory}/socket")
    listening.listen(64)
    while True:
        connection, _ = listening.accept()
        threading.Thread(target=serve, args=(gpu, connection), daemon=True).start()


main(sys.argv[1])
