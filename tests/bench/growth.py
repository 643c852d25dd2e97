"""How checkpoint and restore grow, plain runc against grit-runtime: with memory, processes, mounts and mappings.

    python -m tests.bench.growth --runtime PATH [--only KIND ...] [--rounds 3] [--small] [--json FILE]

Two mappings side by side have different rights, so that the kernel doesn't merge them; vm.max_map_count bounds them.
"""

import argparse
import sys
from typing import Any

from tests.bench import harness
from tests.bench.harness import Place, Subject

KINDS = {
    "memory": (64, 256, 1024, 2048),
    "processes": (1, 10, 100),
    "mounts": (10, 100, 1000),
    "vmas": (1000, 10000, 50000),
}
UNITS = {"memory": "MiB", "processes": "processes", "mounts": "mounts", "vmas": "mappings"}


def subject(kind: str, count: int) -> Subject:
    """What is measured."""
    if kind == "mounts":
        return Subject(words=("memory", "1"), mounts=count)
    return Subject(words=(kind, str(count)), needs=count << 20 if kind == "memory" else 0)


def measure(at: Place, kind: str, count: int, rounds: int) -> dict[str, Any]:
    """One point of a curve."""
    title, made = f"{count} {UNITS[kind]}", subject(kind, count)
    why = harness.missing_memory(made)
    if why:
        print(f"{title}: left out: {why}", flush=True)
        return {"kind": kind, "count": count, "left_out": why}
    series = harness.cycles(at, made, rounds)
    harness.show(title, series)
    return {"kind": kind, "count": count, **harness.figures(series)}


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runtime", required=True, help="the launcher to measure")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS), help="what grows")
    parser.add_argument("--rounds", type=int, default=3, help="how often each (default: 3)")
    parser.add_argument("--small", action="store_true", help="the smallest of each only")
    parser.add_argument("--json", default="build/bench/growth.json", help="where the figures go")
    options = parser.parse_args()
    with harness.place(options.runtime) as at:
        entries = [
            measure(at, kind, count, options.rounds)
            for kind in options.only
            for count in (KINDS[kind][:1] if options.small else KINDS[kind])
        ]
    harness.write(options.json, {"growth": entries})
    return 0


if __name__ == "__main__":
    sys.exit(main())
