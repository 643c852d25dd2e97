r"""Man pages: one for each command, made from what `--help` is made from, and those written by hand (docs/man/*.1.in).

A command's help is the only source of its page: its first sentence is NAME, paragraphs are DESCRIPTION, blocks behind
`\b` are EXAMPLES, and what begins with "Exits with" is EXIT STATUS. click-man makes neither of the last two, and dates
a page by the day on which it is made.
"""

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import click

from grit_runtime import __version__, cli

PROGRAM = "grit-runtime"
_ESCAPES = str.maketrans({"\\": "\\e", "-": "\\-", "'": "\\(aq", "`": "\\(ga", "^": "\\(ha", "~": "\\(ti"})
_USUAL_STATUS = (
    "Exits with 0, with 1 and one line on standard error if it failed, or with 2 if the arguments are wrong."
)


@dataclass(kw_only=True)
class Help:
    """A command's help, taken apart."""

    title: str = ""
    description: list[str] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)
    status: str = ""


def commands(group: click.Command | None = None, words: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """Every command that isn't hidden, by the words that call it, such as `inspect`, sorted."""
    group = group or cli._commands
    if not isinstance(group, click.Group):
        yield " ".join(words), group
        return
    for name, command in sorted(group.commands.items()):
        if not command.hidden:
            yield from commands(command, (*words, name))


def rendered(folder: Path) -> dict[Path, str]:
    """Path to text of every page."""
    made = {folder / f"{_page(words)}.1": render(words, command) for words, command in commands()}
    listed = "".join(f".TP\n.BR {_bare(_page(words))} (1)\n{_running(told(c).title)}\n" for words, c in commands())
    for source in sorted(folder.glob("*.1.in")):
        text = source.read_text().replace("@VERSION@", _bare(__version__)).replace("@COMMANDS@\n", listed)
        made[source.with_suffix("")] = text
    return made


def context(words: str, command: click.Command) -> click.Context:
    """As click makes one for `--help`, but with one width everywhere."""
    parent = click.Context(cli._commands, info_name=PROGRAM, terminal_width=100)
    return click.Context(command, info_name=words, parent=parent, terminal_width=100)


def render(words: str, command: click.Command) -> str:
    """A command's page."""
    said = told(command)
    parts = [
        f'.\\" Made from the help of `{PROGRAM} {words}` by `make docs`: edit that.',
        f'.TH {_bare(_page(words).upper())} 1 "" "{PROGRAM} {__version__}" "{PROGRAM} manual"',
        ".SH NAME",
        f"{_bare(_page(words))} \\- {_bare(_name(said.title))}",
        ".SH SYNOPSIS",
        *_synopsis(words, command),
        ".SH DESCRIPTION",
        "\n.PP\n".join(_running(paragraph) for paragraph in [said.title, *said.description]),
        ".SH OPTIONS",
        *_options(words, command),
        ".SH EXIT STATUS",
        _running(said.status or _USUAL_STATUS),
    ]
    if said.examples:
        parts += [".SH EXAMPLES", "\n.PP\n".join(f".EX\n{_verbatim(example)}\n.EE" for example in said.examples)]
    parts += [".SH SEE ALSO", f".BR {_bare(PROGRAM)} (1),", ".BR runc (8),", ".BR criu (8)"]
    return "\n".join(parts) + "\n"


def _page(words: str) -> str:
    return f"{PROGRAM}-{words.replace(' ', '-')}"


def told(command: click.Command) -> Help:
    found = Help()
    paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
    found.title = " ".join(paragraphs[0].split())
    for paragraph in paragraphs[1:]:
        if paragraph.startswith("\b"):
            found.examples.append(paragraph.partition("\n")[2])
            continue
        text, said, status = " ".join(paragraph.split()).partition("Exits with ")
        found.status += said + status
        if text:
            found.description.append(text.strip())
    return found


def _name(title: str) -> str:
    """What whatis(1) shows: the first clause, without a stop."""
    short = re.split(r"[.:;] |\.$", title)[0].replace("`", "")
    return short[:1].lower() + short[1:]


def _synopsis(words: str, command: click.Command) -> list[str]:
    pieces = command.collect_usage_pieces(context(words, command))
    marked = " ".join("[\\fIOPTIONS\\fR]" if piece == "[OPTIONS]" else f"\\fI{_bare(piece)}\\fR" for piece in pieces)
    return [f".B {_bare(PROGRAM)} {_bare(words)}", marked]


def _options(words: str, command: click.Command) -> list[str]:
    lines = []
    with context(words, command) as ctx:
        for parameter in command.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if isinstance(parameter, click.Option) and record:
                lines += [".TP", f"\\fB{_bare(record[0])}\\fR", _running(" ".join(record[1].split()))]
    return lines


def _bare(text: str) -> str:
    """Text that roff shows as it is: hyphens that can be copied, and no special character."""
    text = text.translate(_ESCAPES)
    return re.sub(r"[^\x00-\x7f]", lambda found: f"\\[u{ord(found[0]):04X}]", text)


def _line(text: str) -> str:
    """A line that is no request of roff's."""
    return f"\\&{text}" if text.startswith((".", "'")) else text


def _running(text: str) -> str:
    """A paragraph: `code` is bold; each sentence begins a line, as roff wants it."""
    words = "".join(
        f"\\fB{_bare(part)}\\fR" if number % 2 else _bare(part).replace("\\(aq", "'")
        for number, part in enumerate(text.split("`"))
    )
    return "\n".join(_line(line) for line in re.split(r"(?<=[.]) (?=[A-Z\\])", words))


def _verbatim(text: str) -> str:
    return "\n".join(_line(_bare(line)) for line in text.splitlines())
