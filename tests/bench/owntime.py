"""Our own time in a restore, a capture and a `create` by annotation: outside the downstream's part.

    owntime.py --runtime PATH [--beside PATH] [--runs 20] [--json FILE]

The downstream and CRIU are stood for by programs that record when they begin and end (recorder.c). `before` is from
the spawn of our process to the downstream's exec, `after` from its end to ours; whatever we have others do meanwhile is
in it. `criu..runc` is what the downstream does after CRIU's end, and not ours. `calls` are the programs that we start
ourselves, the dump or restore included. With --beside, an older installation is measured in the same rounds.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from tests.integration.machine import Bundle, Machine  # noqa: E402

GOAL = 150.0
_OF_SPEC = 12
"""Mounts of a bundle of the tests': runc spec's seven, and five binds."""
MOUNTS = (_OF_SPEC, 60)
_LISTED = 10


@dataclass(kw_only=True)
class Row:
    """One operation of one runtime: milliseconds of every round, and what it had started in the last one."""

    name: str
    goal: float | None
    before: list[float] = field(default_factory=list)
    after: list[float] = field(default_factory=list)
    past_criu: list[float] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)

    def sums(self) -> list[float]:
        """Both together, round by round."""
        return [one + other for one, other in zip(self.before, self.after, strict=True)]


class Recorded(Machine):
    """A machine whose downstream and CRIU record their times, for the installed launcher."""

    def __init__(self, path: Path, state: Path) -> None:
        self.record = path / "record"
        self.programs = path / "programs"
        self.programs.mkdir()
        for name in ("runc", "criu"):
            self._stand_for(name)
        super().__init__(path)
        self.runtime, self.state = "", state
        self.configure()

    def configure(self, **_: Any) -> None:
        """A configuration as people write it: plain YAML, which the launcher reads too."""
        lines = [
            f"downstream: {self.programs}/runc",
            f"state-dir: {self.state}",
            f"log-dir: {self.logs}",
            "checkpoint-roots:",
            f"  - {self.checkpoints}",
        ]
        self.config.write_text("\n".join(lines) + "\n")

    def argv(self, *args: str) -> list[str]:
        """As containerd's, of the installed launcher."""
        options = ["--root", str(self.root), "--log", str(self.path / "log.json"), "--log-format", "json"]
        return [self.runtime, *options, *args]

    def environment(self) -> dict[str, str]:
        """Every call's: CRIU is the one that records."""
        return {**super().environment(), "PATH": f"{self.programs}:{os.environ['PATH']}"}

    def timed(self, row: Row, verb: str, *args: str, counted: bool) -> None:
        """Call it, and note the times around the downstream's `verb`."""
        self.record.write_text("")
        actions = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1, 2)]
        argv = self.argv(*args)
        begun = time.monotonic_ns()
        pid = os.posix_spawn(argv[0], argv, self.environment(), file_actions=actions)
        _, status, _ = os.wait4(pid, 0)
        ended = time.monotonic_ns()
        if os.waitstatus_to_exitcode(status) != 0:
            sys.exit(f"owntime: {' '.join(argv)} failed: {(self.path / 'log.json').read_text()}")
        if counted:
            _note(row, verb, [line.split() for line in self.record.read_text().splitlines()], begun, ended)

    def _stand_for(self, name: str) -> None:
        program = shutil.which(name)
        if program is None:
            sys.exit(f"owntime: {name} is not in PATH")
        subprocess.run(
            [
                "cc", "-O2", "-static", f'-DPROGRAM="{program}"', f'-DRECORD="{self.record}"',
                "-o", str(self.programs / name), str(HERE / "recorder.c"),
            ],
            check=True,
        )  # fmt: skip


def _note(row: Row, verb: str, lines: list[list[str]], begun: int, ended: int) -> None:
    at = {(what, name): int(when) for what, when, name in lines}
    row.before.append((at["begin", verb] - begun) / 1e6)
    row.after.append((ended - at["end", verb]) / 1e6)
    row.past_criu.append((at["end", verb] - at["end", "swrk"]) / 1e6)
    row.calls = [name for what, _, name in lines if what == "begin" and name != "swrk"]


def bundle(machine: Recorded, name: str, mounts: int) -> Bundle:
    """A counter with so many mounts."""
    made = machine.bundle(name)
    more = made.path / "pods" / made.uid / "more"
    more.mkdir()
    listed = []
    for number in range(max(0, mounts - _OF_SPEC)):
        source = more / f"file-{number:02}"
        source.write_text("")
        listed.append(
            {"destination": f"/more/{number:02}", "type": "bind", "source": str(source), "options": ["rbind"]}
        )
        target = made.path / "rootfs/more" / f"{number:02}"
        target.parent.mkdir(exist_ok=True)
        target.write_text("")
    made.edit(lambda config: config["mounts"].extend(listed))
    return made


def rounds(machine: Recorded, runtimes: dict[str, str], mounts: int, runs: int) -> Iterator[Row]:
    """Capture, restore and create by annotation, each runtime in turn."""
    old, new, pod = (bundle(machine, f"{kind}-{mounts}", mounts) for kind in ("old", "new", "pod"))
    images = machine.checkpoints / f"ns/counter-{mounts}/app/checkpoint"
    pod.annotate(type="container", name="app", namespace="ns", checkpoint=str(images.parent.parent))
    machine.start(f"old-{mounts}", old)
    rows = {
        (label, verb): Row(name=f"{verb}, {mounts} mounts{label}", goal=None if verb == "checkpoint" else GOAL)
        for verb in ("restore", "create", "checkpoint")
        for label in runtimes
    }
    for number in range(-2, runs):
        for label, runtime in runtimes.items() if number % 2 else reversed(list(runtimes.items())):
            machine.runtime, counted = runtime, number >= 0
            once(machine, {verb: rows[label, verb] for verb in ("restore", "create", "checkpoint")},
                 (f"old-{mounts}", new, pod, images), counted=counted)  # fmt: skip
    machine.runc("delete", "--force", f"old-{mounts}").ok()
    yield from rows.values()


def once(machine: Recorded, rows: dict[str, Row], what: tuple[str, Bundle, Bundle, Path], *, counted: bool) -> None:
    """One round of one runtime."""
    old, new, pod, images = what
    machine.timed(
        rows["checkpoint"], "checkpoint", "checkpoint", "--leave-running", "--image-path", str(images), old,
        counted=counted,
    )  # fmt: skip
    machine.timed(
        rows["restore"], "restore", "restore", "--detach", "--image-path", str(images), "--bundle", str(new.path),
        "--pid-file", str(machine.path / "pid"), "new", counted=counted,
    )  # fmt: skip
    machine.runc("delete", "--force", "new").ok()
    machine.timed(
        rows["create"], "restore", "create", "--bundle", str(pod.path), "--pid-file", str(machine.path / "pid"), "pod",
        counted=counted,
    )  # fmt: skip
    machine.grit("delete", "--force", "pod").ok()
    shutil.rmtree(images)


def report(rows: list[Row]) -> list[dict[str, object]]:
    """Print the table, and return its content."""
    print(f"{'ms: q1 / median / q3':36}{'before':>20}{'after':>20}{'both':>20}{'criu..runc':>12}  goal")
    found: list[dict[str, object]] = []
    for row in rows:
        before, after, both = (_quartiles(times) for times in (row.before, row.after, row.sums()))
        goal = "" if row.goal is None else f"<= {row.goal:.0f}: {'met' if both[1] <= row.goal else 'missed'}"
        columns = "".join(f"{'/'.join(f'{value:.0f}' for value in times):>20}" for times in (before, after, both))
        print(f"{row.name:36}{columns}{statistics.median(row.past_criu):12.0f}  {goal}".rstrip())
        print(f"    {len(row.calls)} calls: {' '.join(row.calls)}")
        found.append({
            "name": row.name, "before_ms": before, "after_ms": after, "both_ms": both, "goal": row.goal,
            "runs": len(row.before), "calls": row.calls,
        })  # fmt: skip
    return found


def _quartiles(values: list[float]) -> tuple[float, float, float]:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def imports(machine: Recorded, runtime: str) -> None:
    """Print what a restore imports, and the ten modules that take longest by themselves."""
    old, new = bundle(machine, "old-imports", _OF_SPEC), bundle(machine, "new-imports", _OF_SPEC)
    images = machine.checkpoints / "imports/app/checkpoint"
    machine.runtime = runtime
    machine.start("old-imports", old)
    machine.grit("checkpoint", "--image-path", str(images), "old-imports").ok()
    boot = Path(runtime).resolve().parents[1] / "lib/grit-runtime/boot.py"
    argv = [
        "/usr/bin/python3", "-I", "-S", "-X", "importtime", str(boot), "verb", "-",
        *machine.argv("restore", "--detach", "--image-path", str(images), "--bundle", str(new.path), "new-imports"),
    ]  # fmt: skip
    with tempfile.TemporaryFile() as said:  # not a pipe, which the container would keep
        devnull = subprocess.DEVNULL
        subprocess.run(argv, check=True, stdin=devnull, stdout=devnull, stderr=said, env=machine.environment())
        said.seek(0)
        text = said.read().decode()
    machine.runc("delete", "--force", "new-imports").ok()
    found = re.findall(r"^import time:\s+(\d+) \|\s+\d+ \| +(\S+)$", text, re.MULTILINE)
    times = sorted(((int(own) / 1000, name) for own, name in found), reverse=True)
    print(
        f"\nImports of a restore: {len(times)} modules, {sum(own for own, _ in times):.0f} ms, Python's own among them"
    )
    for own, name in times[:_LISTED]:
        print(f"{own:8.1f} ms  {name}")


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runtime", required=True, help="the launcher to measure")
    parser.add_argument("--beside", help="an older launcher, to measure in the same rounds")
    parser.add_argument("--runs", type=int, default=20, help="how many rounds (default: 20)")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    if options.runs < 2:
        parser.error("--runs must be at least 2")
    runtimes = {"": os.path.abspath(options.runtime)}
    if options.beside:
        runtimes[", older"] = os.path.abspath(options.beside)
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryDirectory(dir=_tmpfs()) as state:
        machine = Recorded(Path(name), Path(state))
        try:
            found = report([row for mounts in MOUNTS for row in rounds(machine, runtimes, mounts, options.runs)])
            imports(machine, runtimes[""])
        finally:
            machine.clean()
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=2) + "\n")
    return 0


def _tmpfs() -> str | None:
    """Where the state directory is on tmpfs, as it is on a node."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


if __name__ == "__main__":
    sys.exit(main())
