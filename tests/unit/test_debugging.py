"""docs/debugging.md: every cause has its place, and what it quotes is what the program says."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from grit_runtime.criu import causes

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/debugging.md").read_text()
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
QUOTED = sorted(set(re.findall(r"`([^`\n]*…[^`\n]*)`", PAGE)))
CRIU_S = "CPU capabilities do not match run time"


@cache
def _messages() -> list[str]:
    """Every string of the program, with … for what differs."""
    found = []
    for path in (ROOT / "grit_runtime").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(str(v.value) if isinstance(v, ast.Constant) else "…" for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


@pytest.mark.parametrize("section", SECTIONS)
def test_a_symptom_says_what_it_means_and_what_to_run(section: str) -> None:
    text = SECTIONS[section]
    assert "**It means**" in text or "| it says |" in text, section
    run = re.search(r"\*\*Run\*\*:(.*?)(?=\n\n)", text + "\n\n", re.DOTALL)
    assert run, f"{section}: say what to run"
    assert "`" in run[1], f"{section}: name the command"


def test_every_cause_stands_at_a_symptom_and_none_is_made_up() -> None:
    lines = re.findall(r"^Causes of `diagnose`.*?\.$", PAGE, re.MULTILINE | re.DOTALL)
    dumps = SECTIONS["The container can't be dumped"]
    named = set(re.findall(r"`([a-z0-9.-]+)`", "".join(lines).replace("`diagnose`", "")))
    named |= set(re.findall(r"`([a-z0-9.-]+)`", "".join(re.findall(r"^\| .* \|(.*)\|$", dumps, re.MULTILINE)))) - {
        "diagnose"
    }
    assert named == {cause.id for cause in causes.TABLE}, (
        "docs/debugging.md: put each cause under the symptom that a user sees"
    )


@pytest.mark.parametrize("quoted", QUOTED)
def test_what_is_quoted_is_said(quoted: str) -> None:
    parts = [part.strip() for part in quoted.split("…") if len(part.strip()) > 3]
    whole = re.compile(".*".join(re.escape(part) for part in parts), re.DOTALL)
    assert any(whole.search(message) for message in _messages()), f"the program says no such thing: {quoted}"


def test_checks_of_doctor_are_there() -> None:
    known = set(re.findall(r"`((?:kernel|memory|runtime|criu|engine|storage|gpu)\.[a-z-]+)`", PAGE))
    listed = set(re.findall(r"^\| `([a-z.-]+)` \|", (ROOT / "docs/doctor.md").read_text(), re.MULTILINE))
    configuration = set(re.findall(r"^\| `([a-z.-]+)` \|", (ROOT / "docs/configuration.md").read_text(), re.MULTILINE))
    assert known <= listed | configuration


def test_the_words_of_criu_are_those_of_the_table() -> None:
    assert CRIU_S in PAGE
    assert next(cause for cause in causes.TABLE if cause.id == "cpu").said_by(CRIU_S)
