"""The pages say what the installed program says, and man(1) can read them."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.requirements import ROOT, RUNTIME
from tools.manual import pages

PAGES = sorted(path for path in (ROOT / "docs/man").glob("*.1") if not path.read_text().startswith(".so "))
OPTION = re.compile(r"(?<![\w-])--?[a-z][a-z0-9-]*")


@pytest.mark.needs("runtime")
@pytest.mark.parametrize("words", [words for words, _ in pages.commands()])
def test_options_are_those_that_help_names(words: str) -> None:
    page = (
        (ROOT / f"docs/man/grit-runtime-{words.replace(' ', '-')}.1")
        .read_text()
        .replace("\\-", "-")
        .replace("\\fB", "")
    )
    done = subprocess.run([RUNTIME, *words.split(), "--help"], check=True, capture_output=True, text=True)
    helped = re.findall(r"^ {2}(-.*?)(?:  |$)", done.stdout.partition("Options:")[2], re.MULTILINE)
    options = page.partition(".SH OPTIONS")[2].partition(".SH EXIT")[0]
    paged = re.findall(r"^\.TP\n(-.*)\\fR$", options, re.MULTILINE)
    both = [[word for line in lines for word in OPTION.findall(line)] for lines in (helped, paged)]
    assert both[0] == both[1], "`make build docs`"


@pytest.mark.needs("mandoc")
@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_pages_are_free_of_mistakes(page: Path) -> None:
    done = subprocess.run(["mandoc", "-T", "lint", "-W", "warning", page], check=False, capture_output=True, text=True)
    # No date rather than the day of the build: the same source gives the same page.
    assert [line for line in done.stdout.splitlines() if "missing date" not in line] == []
