"""Checkpoint and restore of a process' memory, plain runc against grit-runtime, in one run.

    python -m tests.bench.memory --runtime PATH [--mib 1024 4096 16384] [--loaded 4096] [--rounds 3] [--disk DIR]

The images are on tmpfs, or on a disk, from which they are restored without the page cache then. After every restore the
process compares all of its memory. How fast the machine itself copies is measured between: UFFDIO_COPY into fresh
memory, and process_vm_readv into a mapped file, by a C program's threads.
"""

import argparse
import statistics
import sys
import time
from typing import Any

from tests.bench import harness
from tests.bench.harness import GRIT, RUNC, Place, Series, Subject

GOALS = {"checkpoint": 3.0, "restore": 2.2}
GOALS_AT = 4096  # MiB
GOAL_RUNS = 0.3  # seconds until a container that is filled behind runs
RATES = {"checkpoint": "read", "restore": "copy"}
RATE_MIB = 1024
LOAD_MIB = 256


class Rates:
    """How fast the machine itself copies, in bytes a second."""

    def __init__(self, at: Place, largest: int) -> None:
        self.at, self.mib = at, min(RATE_MIB, largest)
        self.found: dict[str, list[float]] = {"read": [], "copy": []}

    def measure(self) -> None:
        """Once more."""
        file = self.at.path / "rate"
        for name, more in (("copy", ()), ("read", (file,))):
            with self.at.warm(2 * self.mib << 20):
                seconds = self.at.helper(name, self.mib, harness.THREADS, *more)
            self.found[name].append((self.mib << 20) / seconds)
        file.unlink()

    def median(self, verb: str) -> float:
        """The rate that bounds a verb."""
        return statistics.median(self.found[RATES[verb]])


def measure(at: Place, mib: int, rounds: int, rates: Rates, *, loaded: bool) -> dict[str, Any]:
    """One size."""
    subject, title = _subject(mib), f"{mib} MiB{', with load' if loaded else ''}"
    entry: dict[str, Any] = {"mib": mib, "loaded": loaded}
    why = harness.missing_memory(subject)
    if why:
        print(f"{title}: left out: {why}", flush=True)
        return {**entry, "left_out": why}
    rates.measure()
    series = harness.cycles(at, subject, rounds, LOAD_MIB << 20 if loaded else 0)
    rates.measure()
    harness.show(title, series)
    return {**entry, **harness.figures(series), "share": {} if loaded else _shares(series, rates)}


def behind(at: Place, mib: int, rounds: int) -> dict[str, Any]:
    """Restores that fill behind a container that runs, beside those that fill before and plain runc's."""
    ways: dict[str, tuple[str, dict[str, str]]] = {
        "runc": (RUNC, {}), "before": (GRIT, {"fill": "before"}), "behind": (GRIT, {"fill": "behind"}),
    }  # fmt: skip
    runs: dict[str, list[float]] = {name: [] for name in ways}
    there: list[float] = []
    for number in range(rounds):
        for name in sorted(ways, reverse=bool(number % 2)):
            tool, memory = ways[name]
            at.start(_subject(mib))
            at.checkpoint(GRIT)
            at.configure(**memory)
            with at.warm(mib << 20):
                begun = time.perf_counter()
                runs[name].append(at.restore(tool).seconds)
                at.wait_until_filled()
                there += [time.perf_counter() - begun] if name == "behind" else []
            at.configure()
            at.require_good()
            at.clean()
    print(f"{mib} MiB, until the container runs")
    for name, seconds in runs.items():
        low, middle, high = harness.quartiles(seconds)
        print(f"  {name:26}{low:9.3f}{middle:9.3f}{high:9.3f}")
    low, middle, high = harness.quartiles(there)
    print(f"  {'behind, all is there':26}{low:9.3f}{middle:9.3f}{high:9.3f}", flush=True)
    return {"mib": mib, "runs": runs, "there": there}


def _subject(mib: int) -> Subject:
    return Subject(words=("memory", str(mib)), needs=mib << 20)


def _shares(series: list[Series], rates: Rates) -> dict[str, float]:
    """What the memory's own part of a call makes of the machine's rate."""
    found = {}
    for one in series:
        figures = one.figures()
        if one.tool == GRIT and figures.get("memory_seconds"):
            found[one.verb] = figures["memory_bytes"] / figures["memory_seconds"] / rates.median(one.verb)
    return found


def goals(entries: list[dict[str, Any]]) -> dict[str, bool]:
    """Which goals are met; none if their size wasn't measured."""
    for entry in entries:
        if entry["mib"] == GOALS_AT and not entry["loaded"] and "sooner" in entry:
            return {verb: entry["sooner"][verb] >= goal for verb, goal in GOALS.items()}
    return {}


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runtime", required=True, help="the launcher to measure")
    parser.add_argument("--mib", type=int, nargs="+", default=[1024, 4096, 16384], help="sizes")
    parser.add_argument("--loaded", type=int, default=4096, help="the size that is measured with load, too; 0 for none")
    parser.add_argument("--rounds", type=int, default=3, help="how often each (default: 3)")
    parser.add_argument("--json", default="build/bench/memory.json", help="where the figures go")
    parser.add_argument("--disk", default="", help="a directory for the images, instead of one on tmpfs")
    options = parser.parse_args()
    with harness.place(options.runtime, options.disk) as at:
        rates = Rates(at, max(options.mib))
        entries = [measure(at, mib, options.rounds, rates, loaded=False) for mib in options.mib]
        if options.loaded:
            entries.append(measure(at, options.loaded, options.rounds, rates, loaded=True))
        filled = behind(at, GOALS_AT, options.rounds) if GOALS_AT in options.mib else None
    for name, found in rates.found.items():
        print(f"the machine itself, {name}: {statistics.median(found) / 2**30:.2f} GiB/s by {harness.THREADS} threads")
    for verb, met in ({} if options.disk else goals(entries)).items():
        print(f"{verb} of {GOALS_AT} MiB at least {GOALS[verb]} times sooner: {'met' if met else 'MISSED'}")
    if filled and not options.disk:
        took = statistics.median(filled["runs"]["behind"])
        said = "met" if took <= GOAL_RUNS else "MISSED"
        print(f"a container of {GOALS_AT} MiB, filled behind, runs after {took:.2f} s; goal <= {GOAL_RUNS} s: {said}")
    harness.write(
        options.json,
        {"memory": entries, "behind": filled, "rates": rates.found, "threads": harness.THREADS, "goals": GOALS},
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
