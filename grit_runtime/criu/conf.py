"""The text of a CRIU configuration file (criu(8), "CONFIGURATION FILES"; criu/config.c).

One `option` or `option value` a line, without dashes. A `#` starts a comment anywhere, even inside a value. A value
with spaces should stand in double quotes, but CRIU 4.1.1 refuses most of those (parse_statement looks for a second
value from the wrong place). A line that CRIU can't parse makes it exit with 1 and no log, so that what is rendered here
is checked first.
"""

from collections.abc import Mapping

from grit_runtime.errors import ConfigError

Option = bool | int | float | str | list[str]


def render(options: Mapping[str, Option]) -> str:
    """The lines for `options`: True for a bare option, False for none, a list for one line each.

    Raises:
        ConfigError: a value that the file format cannot hold.
    """
    lines: list[str] = []
    for name, value in options.items():
        if value is True:
            lines.append(name)
        elif value is not False:
            lines += [f"{name} {_quote(name, item)}" for item in (value if isinstance(value, list) else [value])]
    return "".join(f"{line}\n" for line in lines)


def merge(defaults: Mapping[str, Option], users: str, required: Mapping[str, Option]) -> str:
    """A file in which a later line wins: our defaults, then what the user already had, then what we can't do
    without.
    """
    text = users if not users or users.endswith("\n") else users + "\n"
    return f"{render(defaults)}{text}{render(required)}"


def _quote(name: str, value: object) -> str:
    text = str(value)
    if any(c in text for c in '\n"# \t'):
        raise ConfigError(
            f"the CRIU option {name} cannot have the value {text!r}: a CRIU configuration file cannot hold it"
        )
    return text
