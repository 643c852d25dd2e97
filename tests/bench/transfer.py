"""How quick the agent's copy of a set to a volume is, against `cp` and `sync` of the same files.

    python -m tests.bench.transfer [--gib 1] [--rounds 5] [--json FILE]

In turn, on the file system of build/bench. The agent's reads the copy once more, and compares it with its checksums.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import time
from pathlib import Path

from grit_runtime.agent import sets
from grit_runtime.agent.sets import Place, Progress
from tests.requirements import ROOT
from tests.simulated import runtime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=ROOT / "build/bench/transfer.json")
    options = parser.parse_args()
    work = ROOT / "build/bench/transfer"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    runtime.SIZE = int(options.gib * (1 << 30)) // 2
    source = Place(root=str(work / "node"), namespace="default", name="one", uid="u")
    sets.claim(source)
    for name in ("front", "back"):
        runtime.write(work / "node", "one", name)
    (work / "node/default/.grit-set-one").rename(source.path)
    expected = sets.contents(source, ["front", "back"])
    subprocess.run(["sync"], check=True)
    seconds: dict[str, list[float]] = {"cp": [], "agent": []}
    for _ in range(options.rounds):
        begun = time.monotonic()
        subprocess.run(["cp", "-r", "--reflink=never", source.path, work / "cp"], check=True)
        subprocess.run(["sync", "--file-system", work / "cp"], check=True)
        seconds["cp"].append(time.monotonic() - begun)
        shutil.rmtree(work / "cp")
        target = source.below(str(work / "volume"))
        begun = time.monotonic()
        os.makedirs(target.root, exist_ok=True)
        sets.copy(source, target, expected, Progress())
        seconds["agent"].append(time.monotonic() - begun)
        sets.remove(target)
    shutil.rmtree(work)
    total = 2 * runtime.SIZE
    made = {}
    for name, values in seconds.items():
        median = statistics.median(values)
        made[name] = {"seconds": values, "median": median, "MiB/s": total / median / (1 << 20)}
    for name, found in made.items():
        print(f"{name:6} {found['median']:.2f} s, {found['MiB/s']:.0f} MiB/s")
    options.json.write_text(json.dumps({"bytes": total, **made}, indent=1) + "\n")


if __name__ == "__main__":
    main()
