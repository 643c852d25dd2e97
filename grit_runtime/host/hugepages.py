"""Transparent huge pages for the duration of an operation (Documentation/admin-guide/mm/transhuge.rst)."""

import re
from dataclasses import dataclass
from typing import ClassVar

from grit_runtime.host.transaction import Effect

SETTING = "/sys/kernel/mm/transparent_hugepage/enabled"
_ALWAYS, _MADVISE = "always", "madvise"


@dataclass(frozen=True)
class HugePages(Effect):
    """Give huge pages to whoever takes memory on this node; undone by the setting that was, if ours is still there.

    The memory of one process can't be chosen from outside: the CUDA driver takes it, and asks for no huge pages.
    """

    kind: ClassVar[str] = "huge-pages"
    before: str

    def describe(self) -> str:
        return f"set {SETTING} from {self.before} to {_ALWAYS}"

    def apply(self) -> None:
        _write(_ALWAYS)

    def undo(self) -> None:
        if setting() == _ALWAYS:
            _write(self.before)


def setting() -> str:
    """The setting in force: `always`, `madvise` or `never`; empty where there is none."""
    try:
        with open(SETTING, encoding="ascii") as stream:
            found = re.search(r"\[(\w+)\]", stream.read())
    except OSError:
        return ""
    return found[1] if found else ""


def for_all() -> bool:
    """Whether memory is taken in huge pages now, whoever takes it."""
    return setting() == _ALWAYS


def wanted() -> HugePages | None:
    """The effect, on a node that gives huge pages to those who ask; a node where nobody gets any is left so, and where
    everybody does there is nothing to do.
    """
    return HugePages(before=_MADVISE) if setting() == _MADVISE else None


def _write(value: str) -> None:
    with open(SETTING, "w", encoding="ascii") as stream:
        stream.write(value)
