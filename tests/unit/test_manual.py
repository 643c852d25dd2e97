"""What of the manual is generated is new, and says all that it should."""

import re
from pathlib import Path

import click
import pytest

from tools import manual
from tools.manual import configuration, pages

COMMANDS = dict(pages.commands())
MAKE = "run `make docs`, look at what changed, and commit it"


def test_every_generated_file_is_new() -> None:
    old = [path for path, text in manual.rendered().items() if not path.exists() or path.read_text() != text]
    assert [str(path.relative_to(manual.ROOT)) for path in old] == [], MAKE
    assert manual.stale() == [], MAKE


@pytest.mark.parametrize("words", COMMANDS)
def test_help_teaches(words: str) -> None:
    told = pages.told(COMMANDS[words])
    where = f"the docstring of `grit-runtime {words}`, which is its --help and its page"
    assert told.title, f"{where}: begin with a sentence that says what it does"
    assert told.examples, f"{where}: add a block of examples behind \\b"
    assert any(f"grit-runtime {words}" in example for example in told.examples), f"{where}: none calls it"
    assert told.status, f'{where}: add a paragraph that begins with "Exits with"'
    for option in COMMANDS[words].params:
        assert not isinstance(option, click.Option) or option.help, f"{where}: --{option.name} has no help"


def test_a_page_of_a_made_up_command_is_what_roff_wants() -> None:
    @click.command()
    @click.option("--dry-run", is_flag=True, help="Don't. Say `why`.")
    @click.argument("thing")
    def command(dry_run: bool, thing: str) -> None:
        """Do a thing: with `THING`.

        .hidden files don't count\\here. Exits with 3 if they do.

        \b
        grit-runtime try -x 'a' ~/b
        .a
        """

    page = pages.render("try", command)
    assert ".SH NAME\ngrit\\-runtime\\-try \\- do a thing\n" in page
    assert "\n\\&.hidden files don't count\\ehere.\n" in page
    assert ".TP\n\\fB\\-\\-dry\\-run\\fR\nDon't.\nSay \\fBwhy\\fR.\n" in page
    assert ".SH EXIT STATUS\nExits with 3 if they do.\n" in page
    assert ".EX\ngrit\\-runtime try \\-x \\(aqa\\(aq \\(ti/b\n\\&.a\n.EE\n" in page
    assert "[\\fIOPTIONS\\fR] \\fITHING\\fR" in page


def test_the_reference_has_every_key_and_the_defaults_of_the_example() -> None:
    listed = re.findall(r"^\| `([a-z0-9.-]+)` \|", configuration.reference(), re.MULTILINE)
    assert len(listed) == len(set(listed))
    example = (manual.ROOT / "examples/config.yaml").read_text()
    missing = [key for key in listed if not re.search(rf"^ *#? ?{key.rpartition('.')[2]}:", example, re.MULTILINE)]
    assert set(missing) <= {"trust.signing-key"}, "examples/config.yaml holds the defaults; it lacks these keys"


def test_a_page_that_lost_its_marks_is_an_error_that_says_so() -> None:
    with pytest.raises(ValueError, match="has lost a mark"):
        configuration.filled("# Configuration\n" + configuration.BEGIN)


def test_pages_by_hand_name_what_is_there() -> None:
    folder = Path(manual.ROOT / "docs/man")
    for page in folder.glob("*.1"):
        text = page.read_text()
        if target := re.match(r"\.so man1/(\S+)\n$", text):
            assert (folder / target[1]).exists(), f"{page.name} is another name of {target[1]}, which isn't there"
        for name in re.findall(r"^\.BR (grit\S+) \(1\)", text, re.MULTILINE):
            assert (folder / f"{name}.1".replace("\\", "")).exists(), f"{page.name} refers to {name}"
