"""Reading the documentation: its pages, the commands that they show, and what is said of each block of those.

A block of commands has a comment above it that says who runs it:

    <!-- run -->                                    tests/e2e/test_docs.py does, as it stands
    <!-- tested: tests/e2e/test_docker.py -->       this test does, with names of its own; several may be named
    <!-- needs: gpu -->, <!-- needs: cluster -->    nobody here can
    <!-- needs: network -->                         nor this: it is for services elsewhere

What stands below `<!-- output -->` is compared with what the block before has printed; `…` stands for what differs.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from grit_runtime.oci import argv
from tests.requirements import ROOT
from tools.manual import pages

HOW = (
    "put `<!-- run -->`, `<!-- tested: tests/… -->`, `<!-- needs: gpu -->` or `<!-- needs: cluster -->` above the block"
)
PAGES = sorted([*ROOT.glob("docs/**/*.md"), *(ROOT / name for name in ("README.md", "SECURITY.md", "CONTRIBUTING.md"))])
VERBS = frozenset(
    (
        *("checkpoint", "create", "delete", "events", "exec", "features", "kill", "list", "pause", "ps", "restore"),
        *("resume", "run", "spec", "start", "state", "update"),
    )
)
_FENCE = re.compile(r"^( *)```(\w*)$")
_MARK = re.compile(r"^ *<!-- (run|output|tested: .*|needs: .*) -->$")
_CALL = re.compile(r"(?:^|[$(;|&] ?|\bsudo |[A-Z_]+=\S+ )grit-runtime ")
_ENDS = frozenset({"|", "&&", "||", ";", ">", "2>&1", "…", "..."})
_FLAGS = {"checkpoint": argv.CHECKPOINT, "restore": argv.RESTORE, "create": argv.CREATE, "delete": argv.DELETE}


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block."""

    page: Path
    line: int
    language: str
    mark: str
    text: str

    @property
    def where(self) -> str:
        """For messages."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """The lines that are commands: all of `sh`, those behind `$` elsewhere."""
        joined = self.text.replace("\\\n", " ").splitlines()
        if self.language == "sh":
            return [line for line in map(_uncommented, joined) if line]
        return [_uncommented(line.strip()[2:]) for line in joined if line.strip().startswith("$ ")]


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page."""
    found, mark, lines = [], "", page.read_text().splitlines()
    number = 0
    while number < len(lines):
        fence, said = _FENCE.match(lines[number]), _MARK.match(lines[number])
        if fence:
            end = next(n for n in range(number + 1, len(lines)) if lines[n].strip() == "```")
            text = "\n".join(line.removeprefix(fence[1]) for line in lines[number + 1 : end])
            found.append(Block(page=page, line=number + 1, language=fence[2], mark=mark, text=text))
            number = end
        if not said and lines[number].strip():
            mark = ""
        elif said:
            mark = said[1]
        number += 1
    return found


def prose(page: Path) -> str:
    """A page without its fenced blocks and comments."""
    text = re.sub(r"^( *)```.*?^ *```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)


def spans(page: Path) -> list[str]:
    """Code in the running text."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(page))]


def calls(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Where a command of ours is called in a page: the text, and its words from the command on."""
    commands = {words.split()[0] for words, _ in pages.commands()}
    shown = [line for block in blocks(page) for line in block.commands]
    for text in [*shown, *spans(page)]:
        for found in _CALL.finditer(text):
            if words := _after_globals(_words(text[found.end() :])):
                yield text, words
        first = text.split()[0] if text.split() else ""
        if first in commands and " --" in text and text not in shown:
            yield text, _words(text)


def wrong(words: list[str]) -> str:
    """What is wrong in a call of ours, or nothing."""
    name = words[0]
    if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
        return ""  # COMMAND
    known = {listed.split()[0] for listed, _ in pages.commands()}
    if name in known:
        mine = {listed: command for listed, command in pages.commands() if listed.split()[0] == name}
        for listed, command in mine.items():
            if words[: len(listed.split())] == listed.split():
                return _unknown(words, set(_options(listed, command)))
        return "" if len(words) == 1 else f"{name} has no command {words[1]}"
    if name in VERBS:
        spec = _FLAGS.get(name)
        return _unknown(words, {f"--{flag}" for flag in spec.values | spec.switches} | {"--help"}) if spec else ""
    return f"{name} is neither a command of ours nor a verb of an OCI runtime"


def _options(words: str, command: click.Command) -> Iterator[str]:
    for parameter in command.get_params(pages.context(words, command)):
        yield from [*parameter.opts, *parameter.secondary_opts]


def _unknown(words: list[str], known: set[str]) -> str:
    bad = [w for w in words[1:] if re.match(r"--[a-z]", w) and w.partition("=")[0] not in known]
    return f"{words[0]} has no option {', '.join(bad)}" if bad else ""


def _words(text: str) -> list[str]:
    """The words of a call, up to what is no longer the call's."""
    found = []
    for word in re.split(r"\s+", text.strip()):
        if word in _ENDS or word.startswith((">", "<", "#", "$(", '"$(')):
            break
        found.append(word.strip("[]()'\"`,;"))
        if word.endswith((")", ";")):
            break
    return [word for word in found if word]


def _uncommented(line: str) -> str:
    return re.split(r"(?:^|\s)#\s", line)[0].strip()


def mentioned(command: str) -> list[str]:
    """What a test that runs a command must mention: its program, what that is asked to do, and our options."""
    try:
        words = shlex.split(command)
    except ValueError:
        words = command.split()
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    if not words:
        return []
    if words[0] == "grit-runtime":
        ours = _after_globals(words[1:])
        return [*ours[:1], *(word.partition("=")[0] for word in _words(" ".join(ours)) if word.startswith("--"))]
    rest = [w for w in words[1:] if re.fullmatch(r"[a-z][a-z-]+", w)]
    return [words[0].rpartition("/")[2], *rest[:1]]


def _after_globals(words: list[str]) -> list[str]:
    """A call's words without the global options."""
    while words and words[0].startswith("-"):
        words = words[1 if "=" in words[0] or words[0].strip("-") in argv.GLOBAL_SWITCHES else 2 :]
    return words
