"""A report for a terminal. Pure."""

import time
from collections.abc import Iterable, Sequence

from grit_runtime.inspection import words
from grit_runtime.report.model import MEANINGS, Operation, Phase

_MORE_THAN_ALL = 1.001
"""Phases that add up to so much more than what they cover overlap."""


def render(found: Operation) -> str:
    """The operation, its phases as a table, and their sum against the wall clock."""
    lines = [headline(found)]
    if found.images:
        lines.append(f"  {'to  ' if found.operation == 'checkpoint' else 'from'}     {found.images}")
    if found.began is not None:
        lines.append(f"  began    {instant(found.began)}")
    if found.error:
        lines.append(f"  error    {found.error}")
        lines.append(f"  failed in {failed_in(found)}")
        if found.last and found.last.name == "criu":
            lines.append(f"  to do    `grit-runtime diagnose {found.container}`, or with the log that the error names")
    lines += ["", *_table(found), "", f"  {check(found)}"]
    lines += [f"  {note}" for note in notes(found)]
    return "".join(f"{words.shown(line, 5000)}\n" for line in lines)


def listing(found: Sequence[Operation]) -> str:
    """One line for each operation."""
    rows: list[tuple[str, ...]] = [("BEGAN", "OPERATION", "SECONDS", "OUTCOME", "CONTAINER")]
    rows += [
        (instant(each.began or 0), each.operation, f"{each.seconds:.3f}", each.outcome, words.shown(each.container, 80))
        for each in found
    ]
    return "".join(f"{line}\n" for line in _columns(rows, right=(2,)))


def headline(found: Operation) -> str:
    """What it was, of what, how it ended and how long it took."""
    how = "took" if found.ok else "failed after"
    until = "" if found.complete else ", up to the writing of its manifest"
    return f"{found.operation} of container {found.container} {how} {found.seconds:.3f} s{until}"


def failed_in(found: Operation) -> str:
    """The phase that a failed call was in: its last."""
    last = found.last
    return f"`{last.name}`, which began at {last.begin:.3f} s (undoing is counted with it)" if last else "?"


def check(found: Operation) -> str:
    """The sum of the phases against the wall clock, and what became of those that overlap."""
    overlap = found.added - found.covered
    said = f"phases cover {found.covered:.3f} s of {found.seconds:.3f} s by the wall clock ({found.share:.1%})"
    if found.covered and found.added / found.covered > _MORE_THAN_ALL:
        said += f"; added up they are {found.added:.3f} s, for {overlap:.3f} s are in more than one"
    if any(phase.span for phase in found.phases):
        said += "; lines with + are beside them, and not in the sum"
    return said


def notes(found: Operation) -> list[str]:
    """Settings of the node that were changed, and whether they were put back."""
    said = []
    for phase in found.phases:
        if phase.detail:
            back = "put back by the undoing" if phase.unended else f"put back after {phase.seconds:.3f} s"
            said.append(f"{phase.name}: {phase.detail} at {phase.begin:.3f} s, {back}")
    return said


def instant(began: float) -> str:
    """A time for people, to the second, in UTC; empty if it is none."""
    try:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began))
    except (OverflowError, ValueError, OSError):
        return "?"


def _table(found: Operation) -> Iterable[str]:
    rows: list[tuple[str, ...]] = [("PHASE", "SECONDS", "SHARE", "BYTES", "RATE", "")]
    rows += [_row(phase, found.seconds) for phase in found.phases]
    return (f"  {line}" for line in _columns(rows, right=(1, 2, 3, 4)))


def _row(phase: Phase, wall: float) -> tuple[str, ...]:
    share = f"{phase.seconds / wall:.1%}" if wall else ""
    rate = f"{words.size(int(phase.rate))}/s" if phase.rate else ""
    size = words.size(phase.size) if phase.size is not None else ""
    name = f"+ {phase.name}" if phase.span else phase.name
    return (words.shown(name, 40), f"{phase.seconds:.3f}", share, size, rate, MEANINGS.get(phase.name, ""))


def _columns(rows: Sequence[tuple[str, ...]], right: tuple[int, ...]) -> Iterable[str]:
    widths = [max(len(row[number]) for row in rows) for number in range(len(rows[0]))]
    for row in rows:
        cells = (
            cell.rjust(width) if number in right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()
