"""A report of what memory.py and growth.py measured: tables in Markdown, and one picture.

python -m tests.bench.report build/bench/*.json [--svg build/bench/benchmarks.svg]
"""

import argparse
import html
import itertools
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench.growth import UNITS
from tests.bench.harness import GRIT, TOOLS, VERBS

COLORS = {"runc": "#8a8f98", GRIT: "#1f6feb"}
WIDTH, HEIGHT, LEFT, TOP, GAP = 380, 210, 60, 60, 90  # of a panel, and around it
INK = "#24292f"


def _median(entry: dict[str, Any], verb: str, tool: str) -> float:
    (found,) = [one["median"] for one in entry["series"] if (one["verb"], one["tool"]) == (verb, tool)]
    return float(found)


def _spread(entry: dict[str, Any], verb: str, tool: str) -> str:
    (one,) = [one for one in entry["series"] if (one["verb"], one["tool"]) == (verb, tool)]
    return f"{one['median']:.2f} ({one['q1']:.2f} to {one['q3']:.2f})"


def machine_line(machine: dict[str, Any]) -> str:
    """What was measured on, and when."""
    memory = machine["memory"] / 2**30
    return (
        f"{machine['date']}, {machine['cores']} cores, {memory:.0f} GiB, Linux {machine['kernel']}, "
        f"runc {machine['runc']}, CRIU {machine['criu']}"
    )


def table(data: dict[str, Any]) -> str:
    """A table in Markdown."""
    lines = [
        "| | verb | runc, s | grit-runtime, s | times sooner | of the machine's rate |",
        "|---|---|---|---|---|---|",
    ]
    left_out = []
    for entry in data.get("memory", []) + data.get("growth", []):
        if "left_out" in entry:
            left_out.append(f"{_title(entry)} is left out: {entry['left_out']}.")
            continue
        for verb in VERBS:
            share = entry.get("share", {}).get(verb)
            cells = [_title(entry), verb, *(_spread(entry, verb, tool) for tool in TOOLS)]
            cells += [f"{entry['sooner'][verb]:.2f}", f"{100 * share:.0f} %" if share else ""]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *left_out])


def _title(entry: dict[str, Any]) -> str:
    if "kind" in entry:
        return f"{entry['count']} {UNITS[entry['kind']]}"
    return f"{entry['mib'] / 1024:g} GiB{', with load' if entry['loaded'] else ''}"


class Picture:
    """Panels side by side, drawn as SVG."""

    def __init__(self, columns: int) -> None:
        self.columns, self.count, self.parts = columns, 0, list[str]()

    def panel(self, title: str) -> tuple[int, int]:
        """Begin one; the corner from which it is drawn."""
        row, column = divmod(self.count, self.columns)
        self.count += 1
        x, y = LEFT + column * (WIDTH + GAP), TOP + row * (HEIGHT + GAP)
        self.text(x, y - 14, title, size=14, weight="bold")
        self.line(x, y + HEIGHT, x + WIDTH, y + HEIGHT, INK)
        return x, y

    def text(self, x: float, y: float, words: str, *, anchor: str = "start", size: int = 11, weight: str = "") -> None:
        """Words."""
        bold = f' font-weight="{weight}"' if weight else ""
        form = f'x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}"{bold}'
        self.parts.append(f"<text {form}>{html.escape(words)}</text>")

    def line(self, x1: float, y1: float, x2: float, y2: float, color: str, width: float = 1) -> None:
        """A line."""
        place = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
        self.parts.append(f'<line {place} stroke="{color}" stroke-width="{width}"/>')

    def bar(self, x: float, y: float, width: float, height: float, color: str) -> None:
        """A bar."""
        place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
        self.parts.append(f'<rect {place} fill="{color}"/>')

    def legend(self, words: str) -> None:
        """What the colours mean, above all panels."""
        for number, (tool, color) in enumerate(COLORS.items()):
            self.bar(LEFT + number * 110, 12, 12, 12, color)
            self.text(LEFT + number * 110 + 18, 22, tool, size=12)
        self.text(LEFT + 240, 22, words)

    def svg(self) -> str:
        """The file."""
        width = LEFT + min(self.columns, self.count) * (WIDTH + GAP)
        height = TOP + math.ceil(self.count / self.columns) * (HEIGHT + GAP) - 20
        size = f'width="{width}" height="{height}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" fill="{INK}">'
        paper = f'<rect {size} fill="white"/>'
        return "\n".join([head, paper, *self.parts, "</svg>", ""])


def bars(picture: Picture, entries: list[dict[str, Any]], verb: str) -> None:
    """Seconds of both tools beside each other, for each size."""
    x, y = picture.panel(f"{verb}, seconds")
    top = max(_median(entry, verb, tool) for entry in entries for tool in TOOLS)
    room = WIDTH / len(entries)
    for number, entry in enumerate(entries):
        for place, tool in enumerate(TOOLS):
            value = _median(entry, verb, tool)
            height, at = value / top * (HEIGHT - 20), x + room * (number + 0.15 + 0.36 * place)
            picture.bar(at, y + HEIGHT - height, room * 0.32, height, COLORS[tool])
            picture.text(at + room * 0.16, y + HEIGHT - height - 4, f"{value:.2f}", anchor="middle")
        words = f"{_title(entry)}: {entry['sooner'][verb]:.1f} times"
        picture.text(x + room * (number + 0.5), y + HEIGHT + 16, words, anchor="middle")


def curves(picture: Picture, entries: list[dict[str, Any]], kind: str, verb: str) -> None:
    """Seconds against size, both on logarithmic scales: what grows in proportion has a slope of one."""
    x, y = picture.panel(f"{verb} against {UNITS[kind]}, seconds")
    values = [_median(entry, verb, tool) for entry in entries for tool in TOOLS]
    across = _scale([entry["count"] for entry in entries], x, x + WIDTH)
    up = _scale([min(values) / 1.3, max(values) * 1.3], y + HEIGHT, y)
    for tool in TOOLS:
        points = [(across(entry["count"]), up(_median(entry, verb, tool)), entry) for entry in entries]
        for (x1, y1, _), (x2, y2, _) in itertools.pairwise(points):
            picture.line(x1, y1, x2, y2, COLORS[tool], 2)
        for px, py, entry in points:
            picture.bar(px - 3, py - 3, 6, 6, COLORS[tool])
            picture.text(px, py - 7, f"{_median(entry, verb, tool):.2f}", anchor="middle")
    for entry in entries:
        picture.text(across(entry["count"]), y + HEIGHT + 16, str(entry["count"]), anchor="middle")


def _scale(values: list[float], first: float, last: float) -> Callable[[float], float]:
    low, high = math.log(min(values)), math.log(max(values))
    return lambda value: first + (math.log(value) - low) / ((high - low) or 1) * (last - first)


def picture(data: dict[str, Any]) -> str:
    """All of it."""
    made = Picture(columns=2)
    made.legend(machine_line(data["machine"]))
    memory = [entry for entry in data.get("memory", []) if "series" in entry]
    for verb in VERBS if memory else ():
        bars(made, memory, verb)
    growth = [entry for entry in data.get("growth", []) if "series" in entry]
    for kind in dict.fromkeys(entry["kind"] for entry in growth):
        for verb in VERBS:
            curves(made, [entry for entry in growth if entry["kind"] == kind], kind, verb)
    return made.svg()


def main() -> int:
    """Print the tables, and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="+", help="what was measured")
    parser.add_argument("--svg", default="build/bench/benchmarks.svg", help="where the picture goes")
    options = parser.parse_args()
    data: dict[str, Any] = {}
    for file in options.files:
        data |= json.loads(Path(file).read_text())
    print(machine_line(data["machine"]) + "\n\n" + table(data))
    Path(options.svg).parent.mkdir(parents=True, exist_ok=True)
    Path(options.svg).write_text(picture(data))
    return 0


if __name__ == "__main__":
    sys.exit(main())
