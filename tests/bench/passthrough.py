"""What a call that is none of our business costs, side by side with the bare downstream in one run.

    passthrough.py --runtime PATH [--runs 300] [--json FILE]

Every round runs each command once, in turn, so that whatever else the machine does falls on all of them alike. The
time is that of a whole process, from posix_spawn to wait4.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

GOAL = 1.5
CONTAINER = "grit-bench"


@dataclass(kw_only=True)
class Command:
    """One row of the table."""

    name: str
    argv: list[str]
    goal: float | None = None
    seconds: list[float] = field(default_factory=list)

    def run(self, quiet: int) -> float:
        """Run it once, and return the seconds it took."""
        actions = [(os.POSIX_SPAWN_DUP2, quiet, fd) for fd in (0, 1, 2)]
        start = time.perf_counter()
        pid = os.posix_spawn(self.argv[0], self.argv, os.environ, file_actions=actions)
        _, status, _ = os.wait4(pid, 0)
        took = time.perf_counter() - start
        if os.waitstatus_to_exitcode(status) != 0:
            sys.exit(f"passthrough: `{' '.join(self.argv)}` failed")
        return took

    def quartiles(self) -> tuple[float, float, float]:
        """The quartiles, in milliseconds."""
        low, middle, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low * 1000, middle * 1000, high * 1000


@contextmanager
def container(runc: str) -> Iterator[str]:
    """A created container in a downstream root of its own, which is what it yields."""
    with tempfile.TemporaryDirectory(prefix="grit-bench-") as name:
        bundle, root = Path(name) / "bundle", str(Path(name) / "root")
        for directory in ("bin", "proc", "dev", "sys"):
            (bundle / "rootfs" / directory).mkdir(parents=True)
        shutil.copy(_program("busybox"), bundle / "rootfs/bin/sh")
        subprocess.run([runc, "spec", "--bundle", bundle], check=True)
        config = json.loads((bundle / "config.json").read_text())
        config["process"].update(terminal=False, args=["sh", "-c", "exit 0"])
        (bundle / "config.json").write_text(json.dumps(config))
        create = [runc, "--root", root, "create", "--bundle", str(bundle), CONTAINER]
        subprocess.run(create, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            yield root
        finally:
            subprocess.run([runc, "--root", root, "delete", "--force", CONTAINER], check=True)


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        sys.exit(f"passthrough: {name} is not in PATH")
    return found


def commands(runtime: str, runc: str, root: str) -> list[Command]:
    """The rows; the first is what the others are compared with."""
    state = ["--root", root, "state", CONTAINER]
    rows = [
        Command(name="runc state", argv=[runc, *state]),
        Command(name="grit-runtime state", argv=[runtime, *state], goal=GOAL),
    ]
    nvidia = shutil.which("nvidia-container-runtime")
    if nvidia:
        rows.append(Command(name="nvidia-container-runtime state", argv=[nvidia, *state]))
    return [
        *rows,
        Command(name="python3 -IS -c pass", argv=[sys.executable, "-IS", "-c", "pass"]),
        Command(name="grit-runtime config", argv=[runtime, "config"]),
    ]


def measure(rows: list[Command], runs: int) -> None:
    """Run all rows in turn, after a few rounds that don't count; every other round goes backwards."""
    with open(os.devnull, "r+b") as quiet:
        for number in range(-5, runs):
            for row in rows if number % 2 else reversed(rows):
                took = row.run(quiet.fileno())
                if number >= 0:
                    row.seconds.append(took)


def report(rows: list[Command]) -> list[dict[str, object]]:
    """Print the table, and return its content."""
    base = rows[0].quartiles()[1]
    print(f"{'':32}{'q1 ms':>9}{'median ms':>11}{'q3 ms':>9}{'/ runc':>9}  goal")
    found: list[dict[str, object]] = []
    for row in rows:
        low, middle, high = row.quartiles()
        ratio = middle / base
        goal = "" if row.goal is None else f"<= {row.goal}: {'met' if ratio <= row.goal else 'MISSED'}"
        print(f"{row.name:32}{low:9.2f}{middle:11.2f}{high:9.2f}{ratio:9.2f}  {goal}".rstrip())
        found.append({
            "name": row.name, "q1_ms": low, "median_ms": middle, "q3_ms": high, "ratio": ratio, "goal": row.goal,
            "runs": len(row.seconds),
        })  # fmt: skip
    return found


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runtime", required=True, help="the launcher to measure")
    parser.add_argument("--runs", type=int, default=300, help="how often each command runs (default: 300)")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    if options.runs < 2:
        parser.error("--runs must be at least 2")
    runc, runtime = _program("runc"), os.path.abspath(options.runtime)
    with container(runc) as root:
        rows = commands(runtime, runc, root)
        measure(rows, options.runs)
    found = report(rows)
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
