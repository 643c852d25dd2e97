"""Sizes and names, for people. What is shown of a checkpoint may come from anybody: nothing in it reaches a terminal as
a control sequence.
"""

_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_LONGEST = 400


def size(value: int | None) -> str:
    """A number of bytes; `?` for an unknown one."""
    if value is None:
        return "?"
    amount, unit = float(value), 0
    while amount >= 1024 and unit < len(_UNITS) - 1:
        amount, unit = amount / 1024, unit + 1
    return f"{value} {_UNITS[0]}" if not unit else f"{amount:.1f} {_UNITS[unit]}"


def count(number: int, word: str, plural: str = "") -> str:
    """`1 file`, `2 files`."""
    return f"{number} {word}" if number == 1 else f"{number} {plural or word + 's'}"


def shown(value: str, longest: int = _LONGEST) -> str:
    """Text on one line, its control characters escaped, and cut where it is very long."""
    cut = value if len(value) <= longest else f"{value[:longest]}..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in cut)
