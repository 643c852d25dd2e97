"""The pages say what the installed program says, and man(1) can read them."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.requirements import ROOT, RUNTIME

PAGES = sorted(path for path in (ROOT / "docs/man").glob("*.1") if not path.read_text().startswith(".so "))
OPTION = re.compile(r"(?<![\w-])--?[a-z][a-z-]*")


def _commands() -> list[str]:
    """The commands that the program's own help lists."""
    program = "from grit_runtime import cli; import click; print(cli._commands.get_help(click.Context(cli._commands)))"
    done = subprocess.run(
        ["build/venv/bin/python", "-c", program], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return re.findall(r"^  ([a-z-]+)  ", done.stdout.partition("Commands:")[2], re.MULTILINE)


@pytest.mark.needs("runtime")
def test_options_are_those_that_help_names() -> None:
    names = _commands()
    assert "inspect" in names
    for name in names:
        page = (ROOT / f"docs/man/grit-runtime-{name}.1").read_text().replace("\\-", "-").replace("\\fB", "")
        done = subprocess.run([RUNTIME, name, "--help"], check=True, capture_output=True, text=True)
        helped = re.findall(r"^ {2}(-.*?)(?:  |$)", done.stdout.partition("Options:")[2], re.MULTILINE)
        options = page.partition(".SH OPTIONS")[2].partition(".SH EXIT")[0]
        paged = re.findall(r"^\.TP\n(-.*)\\fR$", options, re.MULTILINE)
        both = [[word for line in lines for word in OPTION.findall(line)] for lines in (helped, paged)]
        assert both[0] == both[1], f"{name}: `make build docs`"


@pytest.mark.needs("mandoc")
@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_pages_are_free_of_mistakes(page: Path) -> None:
    done = subprocess.run(["mandoc", "-T", "lint", "-W", "warning", page], check=False, capture_output=True, text=True)
    # No date rather than the day of the build: the same source gives the same page.
    assert [line for line in done.stdout.splitlines() if "missing date" not in line] == []
