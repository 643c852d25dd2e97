"""A diagnosis for people and for programs. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from grit_runtime.diagnosis.judge import CERTAIN, NOTHING, UNKNOWN, Diagnosis, Quote

_VERDICTS = {
    NOTHING: "it did not fail, as far as this log says",
    UNKNOWN: "no known cause: what it says first is below",
}


@dataclass(frozen=True, slots=True)
class Judged:
    """A log and what it says."""

    path: str
    diagnosis: Diagnosis


def render(judged: Sequence[Judged]) -> str:
    """Each log with its causes in order."""
    return "\n\n".join("\n".join(_one(each)) for each in judged) + "\n"


def document(judged: Sequence[Judged]) -> dict[str, Any]:
    """The same for `--json`."""
    return {"logs": [{"path": each.path, **_document(each.diagnosis)} for each in judged]}


def _one(each: Judged) -> list[str]:
    found = each.diagnosis
    lines = [each.path]
    for number, finding in enumerate(found.findings, 1):
        sure = "" if finding.certainty == CERTAIN else " (likely)"
        lines += [f"  {number}. {finding.cause.id}{sure}: {finding.cause.means}"]
        lines += [f"       {_quoted(each.path, quote)}" for quote in finding.evidence]
        lines += [f"     to do: {finding.cause.todo}"]
    if found.verdict in _VERDICTS:
        lines.append(f"  {_VERDICTS[found.verdict]}")
        lines += [f"       {_quoted(each.path, quote)}" for quote in found.errors]
    return [*lines, *(f"  note: {note}" for note in found.notes)]


def _quoted(path: str, quote: Quote) -> str:
    return f"{path.rpartition('/')[2]}:{quote.number}: {quote.text.strip()[:300]}"


def _document(found: Diagnosis) -> dict[str, Any]:
    return {
        "verdict": found.verdict,
        "causes": [
            {
                "id": finding.cause.id,
                "certainty": finding.certainty,
                "means": finding.cause.means,
                "todo": finding.cause.todo,
                "evidence": [{"line": quote.number, "text": quote.text} for quote in finding.evidence],
            }
            for finding in found.findings
        ],
        "errors": [{"line": quote.number, "text": quote.text} for quote in found.errors],
        "notes": list(found.notes),
    }
