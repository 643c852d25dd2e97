"""How long `inspect` and `plan` take for a checkpoint of 30 GiB, which they must answer for within a second.

    python -m tests.bench.looking --runtime PATH [--gib 30] [--entries 8192] [--rounds 10] [--json FILE]

The checkpoint is real, but for one mapping of its process, which is made as large as that: its pages image is sparse,
and its pagemap has as many entries as memory has that is used here and there.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from grit_runtime.criu import images, messages, pagemap
from tests.bench import harness
from tests.bench.harness import GRIT, Place, Series, Subject

GOAL = 1.0  # seconds
_START = 1 << 44  # an address that no mapping has: below the kernel's for mmap, above a program's
_MAPPING = 16  # MiB, of the process that is dumped


def inflate(folder: Path, size: int, entries: int) -> None:
    """Make the largest mapping of the first process `size` bytes large, at another address.

    Args:
        entries: of its pagemap, with a page between two of them that isn't there.
    """
    (folder / "grit.json").unlink()  # which has the sizes that were
    mm = folder / "mm-1.img"
    data = mm.read_bytes()
    magic, listed = messages.loads(data, "MM")
    mappings = [entry for entry in listed[0]["vmas"] if entry["end"] - entry["start"] >= _MAPPING << 20]
    large = max(mappings, key=lambda entry: int(entry["end"]) - int(entry["start"]))
    old = range(large["start"], large["end"])
    large.update(start=_START, end=_START + size)
    listed[0]["vmas"].sort(key=lambda entry: int(entry["start"]))
    mm.write_bytes(messages.dumps(data[: messages.header_size(data)], magic, listed))
    file = folder / "pagemap-1.img"
    known = pagemap.decode(file.read_bytes(), str(file))
    kept = [entry for entry in known.entries if pagemap.address(entry) not in old]
    sample = dict(next(entry for entry in known.entries if pagemap.address(entry) in old))
    step = size // entries // pagemap.PAGE * pagemap.PAGE
    whole = {**sample, 1: old.start, 2: 1, 4: pagemap.PRESENT}
    whole.pop(5, None)
    made = [{**whole, 1: _START + number * step, 2: step // pagemap.PAGE - 1} for number in range(entries)]
    everything = sorted([*kept, *made], key=pagemap.address)
    file.write_bytes(pagemap.encode(known.pages_id, everything))
    os.truncate(folder / f"pages-{known.pages_id}.img", pagemap.decode(file.read_bytes(), str(file)).size)
    images.read(str(folder))


def measure(at: Place, size: int, entries: int, rounds: int) -> list[Series]:
    """Look at it, again and again."""
    at.start(Subject(words=("memory", str(_MAPPING))))
    at.checkpoint(GRIT)
    inflate(at.images, size, entries)
    calls = {
        "inspect": ["inspect", str(at.images)],
        "plan": ["plan", "--bundle", str(at.bundle), "--image-path", str(at.images), "looked-at"],
    }
    found = [Series(verb=verb, tool=GRIT) for verb in calls]
    for _ in range(rounds):
        for series in found:
            series.runs.append(at.look(*calls[series.verb]))
    return found


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runtime", required=True, help="the launcher to measure")
    parser.add_argument("--gib", type=int, default=30, help="size of the checkpoint (default: 30)")
    parser.add_argument("--entries", type=int, default=8192, help="entries of its pagemap (default: 8192)")
    parser.add_argument("--rounds", type=int, default=10, help="how often (default: 10)")
    parser.add_argument("--json", default="build/bench/looking.json", help="where the figures go")
    options = parser.parse_args()
    with harness.place(options.runtime) as at:
        found = measure(at, options.gib << 30, options.entries, options.rounds)
    entry: dict[str, Any] = {"gib": options.gib, "entries": options.entries, "series": [one.figures() for one in found]}
    for series in found:
        slowest = max(series.seconds)
        met = "met" if slowest <= GOAL else "MISSED"
        title = f"{series.verb} of {options.gib} GiB, {options.entries} entries"
        print(f"{title}: {series.median:.3f} s, at most {slowest:.3f} s; goal <= {GOAL:g} s: {met}", flush=True)
    harness.write(options.json, {"looking": [entry]})
    return 0


if __name__ == "__main__":
    sys.exit(main())
