"""The documentation shows nothing that isn't there: commands, options, links, files, make's targets (tests/docs.py)."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import docs
from tests.requirements import ROOT

NEEDS = frozenset({"gpu", "cluster", "network"})
pages = pytest.mark.parametrize("page", docs.PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def _slugs(page: Path) -> set[str]:
    """The anchors that a forge makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S), re.MULTILINE)
    plain = [re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in plain}


@pages
def test_who_runs_each_block_of_commands_is_said(page: Path) -> None:
    wrong = [f"{block.where}: {said}" for block in docs.blocks(page) for said in _complaints(block)]
    assert wrong == [], "\n".join(["blocks of commands that nobody is said to run", *wrong])


def _complaints(block: docs.Block) -> Iterator[str]:
    kind, _, names = block.mark.partition(": ")
    if block.language in ("bash", "shell", "console", "zsh"):
        yield f"say ```sh, and {docs.HOW}"
    elif not block.language and re.match(r"(grit-runtime|make|docker|kubectl) ", block.text):
        yield f"these are commands: begin the block with ```sh, and {docs.HOW}"
    elif block.commands and kind not in ("run", "tested", "needs"):
        yield docs.HOW
    elif kind == "needs" and not set(names.split(", ")) <= NEEDS:
        yield f"needs what? {' or '.join(sorted(NEEDS))}"
    elif kind == "tested":
        yield from _not_in(block, names.split())


def _not_in(block: docs.Block, names: list[str]) -> Iterator[str]:
    """What a block shows and the files that are said to run it don't mention."""
    missing = [name for name in names if not (ROOT / name).is_file()]
    if missing:
        yield f"tested by a file that isn't there: {missing}"
        return
    text = "\n".join((ROOT / name).read_text() for name in names)
    for command in block.commands:
        for word in docs.mentioned(command):
            if not re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text):
                yield f"`{command}` is said to be run by {', '.join(names)}, where there is no {word!r}"


@pages
def test_commands_have_the_options_that_are_shown(page: Path) -> None:
    wrong = [f"`{text}`: {said}" for text, words in docs.calls(page) if (said := docs.wrong(words))]
    assert wrong == [], f"{page.relative_to(ROOT)} shows what `--help` doesn't know"


@pages
def test_links_lead_somewhere(page: Path) -> None:
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)", docs.prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in _slugs(file)):
            dead.append(target)
    assert dead == [], f"{page.relative_to(ROOT)}: links that lead nowhere"


@pages
def test_files_and_targets_that_are_named_are_there(page: Path) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    shown = [*docs.spans(page), *(line for block in docs.blocks(page) for line in block.commands)]
    for text in shown:
        for found in re.findall(r"(?:^|[ ;&]|^sudo )make ([a-z0-9 -]+)", text):
            assert set(found.split()) <= targets, f"{page.name}: `{text}`: make has no such target"
        for found in re.findall(r"(?<![\w/.-])((?:tests|tools|examples|grit_runtime|launcher|hooks)/[\w./-]*\w)", text):
            assert (ROOT / found).exists() or any(ROOT.glob(found + "*")), f"{page.name}: `{text}`: no {found}"


@pages
def test_code_stands_in_fences(page: Path) -> None:
    text = re.sub(r"^( *)```.*?^ *```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    found = re.findall(
        r"\n\n {4}(?! )(?![-*0-9])(.*)", re.sub(r"^ {0,3}[-*] .*?(?=\n\n\S)", "", text, flags=re.M | re.S)
    )
    odd = [line for line in page.read_text().splitlines() if re.match(r" *(```|~~~)(?!\w*$)", line)]
    assert odd == [], f"{page.name}: a fence is ``` and one word, so that the tests find it"
    assert found == [], f"{page.name}: a block by indentation, which nobody checks: use ```sh, and {docs.HOW}"


def test_the_list_of_pages_is_whole() -> None:
    index = (ROOT / "docs/README.md").read_text()
    linked = set(re.findall(r"\]\(([a-z0-9/-]+\.md)", index))
    there = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")} - {"README.md"}
    assert there <= linked, "docs/README.md lists every page by what one wants to do: add these"


def test_the_program_names_pages_that_are_there() -> None:
    for source in (ROOT / "grit_runtime").rglob("*.py"):
        for name in re.findall(r"docs/[a-z-]+\.md", source.read_text()):
            assert (ROOT / name).exists(), f"{source.relative_to(ROOT)} refers to {name}"


def test_a_block_is_read_with_its_mark_and_a_wrong_call_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "text `grit-runtime plan --bundel X`, `prune --kep 3`, `grit-runtime --root /r inspect --files C`\n\n"
        "<!-- tested: a b -->\n```sh\n# none\ngrit-runtime --root=/r doctor --node | jq --x # c\n"
        "a \\\n  --b\n```\ntext\n```\n$ grit-runtime nothing\nsaid\n```\n"
    )
    first, second = docs.blocks(page)
    assert (first.mark, first.commands) == (
        "tested: a b",
        ["grit-runtime --root=/r doctor --node | jq --x", "a    --b"],
    )
    assert (second.mark, second.commands) == ("", ["grit-runtime nothing"])
    said = [docs.wrong(words) for _, words in docs.calls(page)]
    assert [word for word in said if word] == [
        "nothing is neither a command of ours nor a verb of an OCI runtime",
        "plan has no option --bundel",
        "prune has no option --kep",
    ]
    assert docs.mentioned("grit-runtime --root /r inspect --files x | jq --y") == ["inspect", "--files"]
    assert docs.mentioned("A=b docker checkpoint create x") == ["docker", "checkpoint"]
