"""What runs in the container: counts with a child of its own, and holds memory that no other process can have.

Executed as a program, by the node's Python and without its packages: standard library only, and nothing of ours. Its
memory and its token are random and stand nowhere but in its memory and in what it was asked for: what answers with
them after the restore is the process of before.

Its directories are those of `pod`: /data/out has its count, a line each; a file /data/ask makes it write /data/answer.
"""

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


def _text(path: str) -> str:
    with open(path, encoding="utf-8") as stream:
        return stream.read()


def _append(path: str, line: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(fd, line.encode())
    os.close(fd)


def main(size: int) -> None:
    """Count for ever.

    Args:
        size: MiB of memory to hold.
    """
    child, asking, answers = _count_in_child()  # before there is memory, which it would hold, too
    memory = bytearray()
    for _ in range(size):
        memory += os.urandom(1 << 20)
    digest, token, number = hashlib.blake2b(memory).hexdigest(), os.urandom(16).hex(), 0
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
    main(int(sys.argv[1]))
