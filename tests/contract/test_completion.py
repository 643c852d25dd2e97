"""Shells complete our commands by the installed launcher: bash really does, zsh's and fish's scripts are looked at."""

import subprocess

import pytest

from tests.requirements import RUNTIME

pytestmark = pytest.mark.needs("runtime")


def _script(shell: str) -> str:
    return subprocess.run([RUNTIME, "completion", shell], check=True, capture_output=True, text=True).stdout


def _complete(*line: str) -> list[str]:
    """What bash offers for the last word."""
    words = " ".join(f"'{word}'" for word in line)
    program = (
        f"{_script('bash')}\nCOMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMPREPLY=()\n"
        f'_grit_runtime_completion "{RUNTIME}"; printf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    done = subprocess.run(["bash", "-c", program], check=True, capture_output=True, text=True)
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        (("pl",), ["plan"]),
        (("re",), ["recover", "report", "restore-into"]),
        (("plan", "--im"), ["--image-path"]),
        (("doctor", "--fi"), ["--fix-hints"]),
        (("doctor", "--engine", "con"), ["containerd"]),
        (("prune", "--ke"), ["--keep"]),
    ],
)
def test_bash_completes(line: tuple[str, ...], offered: list[str]) -> None:
    assert _complete("grit-runtime", *line) == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_calls_our_command_and_not_the_runtime(shell: str) -> None:
    (call,) = [line for line in _script(shell).splitlines() if f"={shell}_complete" in line]
    assert f" completion {shell})" in call
