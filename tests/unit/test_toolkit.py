"""NVIDIA's toolkit: its hooks in a config.json, and its configuration with another low-level runtime."""

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grit_runtime import documents, toolkit

NVIDIA = {"path": "/usr/bin/nvidia-container-runtime-hook", "args": ["nvidia-container-runtime-hook", "prestart"]}
OTHER = {"path": "/opt/other", "args": ["other"]}


def test_its_hooks_are_taken_out_and_no_others() -> None:
    hooks = {
        "prestart": [NVIDIA, OTHER, {"path": "/x/nvidia-container-toolkit"}],
        "createContainer": [{"path": "/usr/bin/nvidia-cdi-hook"}, {"path": "/usr/bin/nvidia-ctk"}, OTHER],
    }
    assert toolkit.without_hooks({"hooks": hooks})["hooks"] == {"prestart": [OTHER], "createContainer": [OTHER]}
    assert toolkit.without_hooks({"hooks": None}) == {"hooks": None}


def test_its_hook_is_added_once() -> None:
    once = toolkit.with_hook({"hooks": {"prestart": [OTHER]}}, NVIDIA["path"])  # type: ignore[arg-type]
    assert once["hooks"]["prestart"] == [OTHER, NVIDIA]
    assert toolkit.with_hook(once, "/elsewhere/nvidia-container-runtime-hook") == once


@pytest.mark.parametrize(
    ("program", "answer"),
    [
        ("/usr/bin/nvidia-container-runtime", True),
        ("nvidia-container-runtime.cdi", True),
        ("/usr/local/nvidia/toolkit/nvidia-container-runtime.real", True),
        ("/usr/bin/runc", False),
        ("/opt/nvidia-container-runtime/runc", False),
    ],
)
def test_it_is_known_by_its_name(program: str, answer: bool) -> None:
    assert toolkit.is_runtime(program) is answer


_plain = (
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.text(st.characters(codec="utf-8"))
    | st.lists(st.text() | st.dictionaries(st.text(max_size=5), st.integers(), max_size=2))
)
_tables = st.recursive(
    st.dictionaries(st.text(max_size=9), _plain, max_size=4),
    lambda inner: st.dictionaries(st.text(max_size=9), inner | _plain, max_size=4),
    max_leaves=12,
)


@given(_tables)
def test_what_is_written_is_what_was_read(settings: dict[str, Any]) -> None:
    assert tomllib.loads(documents.dump_toml(settings)) == settings


def test_only_the_low_level_runtime_is_another() -> None:
    settings = {"swarm-resource": "x", "nvidia-container-runtime": {"mode": "cdi", "runtimes": ["runc"], "modes": {}}}
    made = toolkit._with_runtime(settings, "/bin/true")
    assert made["nvidia-container-runtime"] == {"mode": "cdi", "runtimes": ["/bin/true"], "modes": {}}
    assert made["swarm-resource"] == "x"
