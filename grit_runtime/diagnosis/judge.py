"""From the lines of a log to a cause, and how sure that is. Pure."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from grit_runtime.criu.causes import TABLE, Cause

CERTAIN, LIKELY, UNKNOWN, NOTHING = "certain", "likely", "unknown", "nothing"
_QUOTED = 5
_STAMP = re.compile(r"^\(\s*(\d+\.\d+)\)")
_ERROR = re.compile(r"^\(\s*\d+\.\d+\)\s*(?:pie: )?(?:\d+: )?Error \(")
_OURS = re.compile(r'"level": ?"error"')
_FAILED = re.compile(r"Error \([^)]*\): (Dumping|Restoring) FAILED\.")
_ENDED = re.compile(r"(Dumping|Restore) finished successfully")
_PLUGIN = re.compile(r"finished (\w+) stage (\d+) err (-?\d+)")
_MOUNT = re.compile(r"\bNo mapping for (\d+):|\b(\d+):\S* doesn't have a proper root")
_STAGES = {"0": "the dump", "1": "the pre-dump", "2": "the restore"}

# What CRIU says and goes on (criu/util.c wants CAP_SYS_RESOURCE); what only says that it has failed.
_HARMLESS = ("Can't setup RLIMIT_NOFILE for self",)
_CONSEQUENCE = ("Dumping FAILED.", "Restoring FAILED.")


@dataclass(frozen=True, slots=True)
class Quote:
    """A line of a log, by its number from 1."""

    number: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A cause, and the lines that say so."""

    cause: Cause
    certainty: str
    evidence: tuple[Quote, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What a log says, the likeliest first."""

    verdict: str
    """`certain`, `likely`, `unknown`, or `nothing`: it did not fail."""
    findings: tuple[Finding, ...] = ()
    errors: tuple[Quote, ...] = ()
    """The first errors, where no cause is known."""
    notes: tuple[str, ...] = field(default=())


def judge(lines: Sequence[str], *, whole: bool = True, mounts: dict[int, str] | None = None) -> Diagnosis:
    """Say what went wrong.

    A cause is certain where it alone is found, the first error says so, and the log looks whole: its times rise, and
    its end says that CRIU failed. Whatever else is found is likely.

    Args:
        lines: of one log.
        whole: no part of it was left out in reading.
        mounts: mount id to mountpoint, of the images beside it.
    """
    quotes = [Quote(number, line) for number, line in enumerate(lines, 1)]
    errors = [quote for quote in quotes if _is_error(quote.text)]
    found = _found(quotes, errors)
    ended = any(_ENDED.search(line) for line in lines)
    if ended and not _fails(lines):  # what CRIU tried in vain on the way did no harm
        found = [finding for finding in found if finding.cause.any_level]
    notes = tuple(_notes(lines, mounts or {}))
    if not found:
        if errors and (not ended or _fails(lines)):
            return Diagnosis(verdict=UNKNOWN, errors=tuple(errors[:_QUOTED]), notes=notes)
        return Diagnosis(verdict=NOTHING if ended or not quotes else UNKNOWN, notes=notes)
    sure = len(found) == 1 and whole and _is_whole(lines) and _says_first(found[0], errors)
    listed = tuple(
        Finding(cause=each.cause, certainty=CERTAIN if sure else LIKELY, evidence=each.evidence) for each in found
    )
    return Diagnosis(verdict=CERTAIN if sure else LIKELY, findings=listed, notes=notes)


def _is_error(line: str) -> bool:
    if any(text in line for text in (*_HARMLESS, *_CONSEQUENCE)):
        return False
    return bool(_ERROR.match(line) or _OURS.search(line))


def _found(quotes: list[Quote], errors: list[Quote]) -> list[Finding]:
    """Every cause that is said, by the place of its first line."""
    warned = [quote for quote in quotes if "Warn  (" in quote.text]
    found = []
    for cause in TABLE:
        asked = quotes if cause.any_level else [*errors, *warned]
        evidence = sorted((quote for quote in asked if cause.said_by(quote.text)), key=lambda quote: quote.number)
        if evidence:
            found.append(Finding(cause=cause, certainty=LIKELY, evidence=tuple(evidence[:_QUOTED])))
    return sorted(found, key=lambda finding: finding.evidence[0].number)


def _says_first(finding: Finding, errors: list[Quote]) -> bool:
    first = finding.evidence[0]
    return finding.cause.any_level or (bool(errors) and errors[0] == first)


def _fails(lines: Sequence[str]) -> bool:
    return any(_FAILED.search(line) for line in lines)


def _is_whole(lines: Sequence[str]) -> bool:
    """Whether it looks like one log of CRIU's from its begin to its end."""
    stamps = [float(match[1]) for line in lines if (match := _STAMP.match(line))]
    last = [line for line in lines if line.strip()][-3:]
    ends = any(_FAILED.search(line) or _ENDED.search(line) for line in last)
    return bool(stamps) and stamps == sorted(stamps) and stamps[0] < 1 and ends


def _notes(lines: Sequence[str], mounts: dict[int, str]) -> list[str]:
    notes = []
    for line in lines:
        plugin, mount = _PLUGIN.search(line), _MOUNT.search(line)
        if plugin and plugin[3] != "0":
            stage = _STAGES.get(plugin[2], f"stage {plugin[2]}")
            notes.append(
                f"`{plugin[0]}` is no cause: the plugin {plugin[1]} is told at its end that {stage} has failed, "
                f"whatever "
                "made it fail"
            )
        if mount:
            number = int(mount[1] or mount[2])
            if number in mounts:
                notes.append(f"mount {number} is {mounts[number]}")
    return list(dict.fromkeys(notes))[:_QUOTED]
