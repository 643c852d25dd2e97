"""A simulated `grit-runtime capture`: makes a set whose files are random, with a manifest as the real one's.

`python runtime.py ROOT capture --name NAME [--ask] ID...`; an id is `id-CONTAINER`. `ROOT recover` does nothing,
`ROOT report --list --json ID` prints ROOT/report-ID.
ROOT/calls gets a line for each call, for each answer to --ask, and for SIGTERM. ROOT/fault, if it is there, says what
goes wrong: `fail`, or `hang` until it is gone.
"""

import os
import signal
import sys
import time
from pathlib import Path

from grit_runtime.checkpoint import integrity, manifest

SIZE = 3 << 20


def say(root: Path, line: str) -> None:
    with (root / "calls").open("a") as stream:
        stream.write(f"{line}\n")


def fault(root: Path) -> str:
    file = root / "fault"
    return file.read_text() if file.exists() else ""


def write(root: Path, name: str, container: str) -> None:
    images = root / "default" / f".grit-set-{name}" / container / "checkpoint"
    images.mkdir(parents=True, exist_ok=True)
    (images / "pages-1.img").write_bytes(os.urandom(SIZE))
    sums = integrity.of_files(str(images), {"pages-1.img": SIZE}, {}, 1)
    data = {
        "machine": {"architecture": "x86_64"},
        "files": [{"name": "pages-1.img", "bytes": SIZE, "checksums": sums["pages-1.img"]}],
        "checksums": {"algorithm": integrity.ALGORITHM, "chunk": integrity.CHUNK},
    }
    (images / "grit.json").write_bytes(manifest.encode(data))


def main(root: Path, name: str, ask: bool, ids: list[str]) -> int:
    signal.signal(signal.SIGTERM, lambda *_: (say(root, "terminated"), sys.exit(1)))
    say(root, f"capture {name} {' '.join(ids)}")
    while fault(root) == "hang":
        time.sleep(0.02)
    if fault(root) == "fail":
        print("grit-runtime: cannot dump container id-app: it holds a mqueue", file=sys.stderr)
        return 1
    for one in ids:
        write(root, name, one.removeprefix("id-"))
    (root / "default" / f".grit-set-{name}").rename(root / "default" / name)
    if ask:
        print("complete", flush=True)
        say(root, f"answer {sys.stdin.readline().strip()}")
    print("done")
    return 0


if __name__ == "__main__":
    if sys.argv[2] == "recover":
        say(Path(sys.argv[1]), "recover")
        sys.exit(0)
    if sys.argv[2] == "report":
        file = Path(sys.argv[1]) / f"report-{sys.argv[5]}"
        sys.stdout.write(file.read_text() if file.exists() else "")
        sys.exit(0 if file.exists() else 2)
    words = sys.argv[4:]
    sys.exit(main(Path(sys.argv[1]), words[0], "--ask" in words, [word for word in words[1:] if word != "--ask"]))
