"""The first line of a file that `install` wrote: by its checksum we know our own from what somebody changed since."""

import hashlib
import re
from enum import Enum

_LINE = "# Written by `grit-runtime install`; `grit-runtime uninstall` removes it. SHA-256 of the rest: {}\n"
_FIRST = re.compile(re.escape(_LINE).replace(re.escape("{}"), "([0-9a-f]{64})"))


class Whose(Enum):
    """Whom a file belongs to."""

    OURS = "as install wrote it"
    CHANGED = "written by install and changed by hand since"
    FOREIGN = "not written by install"


def marked(body: str) -> str:
    """The text with its first line."""
    return _LINE.format(_sum(body)) + body


def whose(text: str) -> Whose:
    """Whether a text is as `marked` made it."""
    found = _FIRST.match(text)
    if found is None:
        return Whose.FOREIGN
    return Whose.OURS if _sum(text[found.end() :]) == found[1] else Whose.CHANGED


def _sum(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()
