"""A report as a file of node_exporter's textfile collector (Prometheus' text-based format; OpenMetrics' end). Pure."""

from collections.abc import Iterable

from grit_runtime.inspection import words
from grit_runtime.report.model import Operation

_PREFIX = "grit_runtime_operation"


def render(found: Operation) -> str:
    """Gauges of one operation.

    The labels are what doesn't grow without bound: the operation, and the phase. Which container it was is in one
    metric of its own, as is usual (`_info`).
    """
    labels = {"operation": found.operation}
    phases: dict[str, float] = {}
    sizes: dict[str, int] = {}
    for phase in found.phases:  # one name may come twice, a series not
        phases[phase.name] = phases.get(phase.name, 0.0) + phase.seconds
        if phase.size is not None:
            sizes[phase.name] = sizes.get(phase.name, 0) + phase.size
    info = {**labels, "container": found.container, "outcome": found.outcome, "version": found.version}
    lines = [
        *_gauge("_info", "Which operation the other metrics are of.", [(info, 1)]),
        *_gauge("_success", "Whether it succeeded.", [(labels, int(found.ok))]),
        *_gauge("_seconds", "How long it took by the wall clock.", [(labels, found.seconds)]),
        *_gauge("_covered_seconds", "How much of that is in its phases; what overlaps counts once.",
                [(labels, round(found.covered, 6))]),
        *_gauge("_phase_seconds", "How long a phase took.",
                [({**labels, "phase": name}, round(value, 6)) for name, value in phases.items()]),
        *_gauge("_phase_bytes", "How much a phase moved.",
                [({**labels, "phase": name}, value) for name, value in sizes.items()]),
    ]  # fmt: skip
    if found.began is not None:
        lines += _gauge("_begin_timestamp_seconds", "When it began.", [(labels, found.began)])
    return "\n".join([*lines, "# EOF"]) + "\n"


def _gauge(name: str, about: str, values: Iterable[tuple[dict[str, str], float]]) -> list[str]:
    samples = [f"{_PREFIX}{name}{{{_labels(labels)}}} {value!r}" for labels, value in values]
    return [f"# HELP {_PREFIX}{name} {about}", f"# TYPE {_PREFIX}{name} gauge", *samples] if samples else []


def _labels(labels: dict[str, str]) -> str:
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())


def _escaped(value: str) -> str:
    """A label's value, on one line."""
    return words.shown(value).replace("\\", r"\\").replace('"', r"\"")
