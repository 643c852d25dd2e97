"""What the checks said: for people, as JSON, as labels of a node, as metrics. Pure."""

import re
from collections.abc import Iterator
from typing import Any

from grit_runtime.doctor import table
from grit_runtime.doctor.facts import Facts
from grit_runtime.doctor.model import Judged, State
from grit_runtime.doctor.nodechecks import dotted, numbers
from grit_runtime.inspection import words

_NOT_IN_A_LABEL = re.compile(r"[^A-Za-z0-9._-]+")
_LONGEST_LABEL = 63  # k8s.io/apimachinery, validation, LabelValueMaxLength


def document(facts: Facts, judged: list[Judged]) -> dict[str, Any]:
    """What `--json` prints (docs/doctor.md)."""
    return {
        "able": {"restore": table.able(judged, gpu=False), "restore-gpu": table.able(judged, gpu=True)},
        "counts": {state.value: sum(item.verdict.state is state for item in judged) for state in State},
        "checks": [
            {
                "id": item.id,
                "about": item.about,
                "state": item.verdict.state.value,
                "found": item.verdict.found,
                "todo": item.verdict.todo,
                "fix": list(item.verdict.fix),
            }
            for item in judged
        ],
        "labels": labels(facts, judged),
    }


def render(judged: list[Judged], *, hints: bool) -> str:
    """Plain text.

    Args:
        hints: with the commands that put it right.
    """
    return "".join(f"{words.shown(line, 2000)}\n" for line in _lines(judged, hints))


def _lines(judged: list[Judged], hints: bool) -> Iterator[str]:
    width = max((len(item.id) for item in judged), default=0)
    for item in judged:
        about = f"{item.about}: " if item.about else ""
        yield f"{item.verdict.state.value:4}  {item.id:{width}}  {about}{item.verdict.found}"
        if item.verdict.todo:
            yield f"{'':4}  {'':{width}}  -> {item.verdict.todo}"
        for command in item.verdict.fix if hints else ():
            yield f"{'':4}  {'':{width}}     $ {command}"
    counted = ", ".join(f"{sum(item.verdict.state is state for item in judged)} {state.value}" for state in State)
    yield ""
    yield counted
    able = table.able(judged, gpu=False)
    yield f"this node is {'' if able else 'not '}able to checkpoint and restore containers{_gpus(judged)}"


def _gpus(judged: list[Judged]) -> str:
    api = next((item.verdict.state for item in judged if item.id == "gpu.api"), State.SKIP)
    if api is State.SKIP:
        return ""
    return ", with CUDA too" if table.able(judged, gpu=True) else ", but none with CUDA"


def labels(facts: Facts, judged: list[Judged]) -> dict[str, str]:
    """Labels of the node, by which a scheduler may choose."""
    node = facts.gpus.node
    found = {
        "grit.dev/restore": str(table.able(judged, gpu=False)).lower(),
        "grit.dev/restore-gpu": str(table.able(judged, gpu=True)).lower(),
        "grit.dev/criu": dotted(numbers(facts.criu.program.version)),
        "grit.dev/cgroup": facts.kernel.cgroup,
        "grit.dev/driver": node.driver if node else "",
    }
    plain = {name: _NOT_IN_A_LABEL.sub("-", value)[:_LONGEST_LABEL].strip("-._") for name, value in found.items()}
    return {name: value for name, value in plain.items() if value}


def label_lines(facts: Facts, judged: list[Judged]) -> str:
    """A file of node-feature-discovery's (features.d), and what `kubectl label node` takes."""
    return "".join(f"{name}={value}\n" for name, value in labels(facts, judged).items())


def metrics(judged: list[Judged], now: float) -> str:
    """A file of node_exporter's textfile collector.

    Args:
        now: seconds since the epoch.
    """
    lines = [
        "# HELP grit_runtime_able Whether nothing fails that restoring such a container needs.",
        "# TYPE grit_runtime_able gauge",
        *(
            f'grit_runtime_able{{containers="{name}"}} {int(table.able(judged, gpu=gpu))}'
            for name, gpu in (("any", False), ("cuda", True))
        ),
        "# HELP grit_runtime_check How a check of `grit-runtime doctor` ended; 1 is how.",
        "# TYPE grit_runtime_check gauge",
        *(
            f'grit_runtime_check{{id="{item.id}",about="{_escaped(item.about)}",state="{state.value}"}} '
            f"{int(item.verdict.state is state)}"
            for item in judged
            for state in State
        ),
        "# HELP grit_runtime_doctor_timestamp_seconds When the checks were made.",
        "# TYPE grit_runtime_doctor_timestamp_seconds gauge",
        f"grit_runtime_doctor_timestamp_seconds {now:.0f}",
    ]
    return "\n".join(lines) + "\n"


def _escaped(value: str) -> str:
    """A label's value (Prometheus, text-based format)."""
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
