"""What runs in the container: counts with a child of its own, and holds memory that no other process can have.

Executed as a program, by the node's Python and without its packages: standard library only, and nothing of ours. Its
memory and its token are random and stand nowhere but in its memory and in what it was asked for: what answers with
them after the restore is the process of before.

Its directories are those of `pod`: /data/out has its count, a line each; a file /data/ask makes it write /data/answer.
"""

import ctypes
import hashlib
import json
import os
import sys
import time

TICK = 0.05  # seconds


def _count_in_child() -> tuple[int, int, int]:
    """Start a child that counts requests; returns its pid, and the descriptors to ask it and to read its answer."""
    theirs, asking = os.pipe()
    answers, answering = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(asking)
        os.close(answers)
        number = 0
        while os.read(theirs, 1):
            number += 1
            os.write(answering, b"%d\n" % number)
        os._exit(0)
    os.close(theirs)
    os.close(answering)
    return pid, asking, answers


class Cuda:
    """Random bytes on the first GPU, by the driver's API alone (cuda.h)."""

    def __init__(self, size: int) -> None:
        """Allocate and fill `size` bytes."""
        self._driver, self._size = ctypes.CDLL("libcuda.so.1"), size
        device, context, self._memory = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
        self._do("cuInit", 0)
        self._do("cuDeviceGet", ctypes.byref(device), 0)
        self._do("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._do("cuCtxSetCurrent", context)
        self._do("cuMemAlloc_v2", ctypes.byref(self._memory), ctypes.c_size_t(size))
        self._do("cuMemcpyHtoD_v2", self._memory, os.urandom(size), ctypes.c_size_t(size))

    def digest(self) -> str:
        """Of what is on the GPU."""
        copy = ctypes.create_string_buffer(self._size)
        self._do("cuMemcpyDtoH_v2", copy, self._memory, ctypes.c_size_t(self._size))
        return hashlib.blake2b(memoryview(copy)).hexdigest()

    def _do(self, name: str, *arguments: object) -> None:
        code = getattr(self._driver, name)(*arguments)
        if code:
            raise RuntimeError(f"{name} said {code}")


def _text(path: str) -> str:
    with open(path, encoding="utf-8") as stream:
        return stream.read()


def _append(path: str, line: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(fd, line.encode())
    os.close(fd)


def main(size: int, on_gpu: int) -> None:
    """Count for ever.

    Args:
        size: MiB of memory to hold.
        on_gpu: MiB of memory to hold on the GPU; with 0, CUDA is not touched.
    """
    child, asking, answers = _count_in_child()  # before there is memory, which it would hold, too
    memory = bytearray()
    for _ in range(size):
        memory += os.urandom(1 << 20)
    digest, token, number = hashlib.blake2b(memory).hexdigest(), os.urandom(16).hex(), 0
    try:
        cuda = Cuda(on_gpu << 20) if on_gpu else None
    except (OSError, RuntimeError, AttributeError) as err:
        _append("/data/failed", f"{err}\n")
        sys.exit(1)
    while True:
        number += 1
        os.write(asking, b".")
        theirs = int(os.read(answers, 32))
        _append("/data/out", f"{number}\n")
        if os.path.exists("/data/ask"):
            answer = {
                "number": number,
                "child_number": theirs,
                "token": token,
                "digest": hashlib.blake2b(memory).hexdigest(),
                "digest_of_start": digest,
                "gpu_digest": cuda.digest() if cuda else "",
                "pid": os.getpid(),
                "child": child,
                "hostname": _text("/etc/hostname").strip(),
                "secret": _text("/var/run/secrets/token/token").strip(),
                "node_name": os.uname().nodename,
            }
            with open("/data/answer.new", "w", encoding="utf-8") as stream:
                json.dump(answer, stream)
            os.unlink("/data/ask")
            os.rename("/data/answer.new", "/data/answer")
        time.sleep(TICK)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
