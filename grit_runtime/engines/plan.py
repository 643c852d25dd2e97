"""What a registration is, whichever the engine."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from grit_runtime.documents import dump_toml, load_toml
from grit_runtime.engines import mark
from grit_runtime.errors import ConfigError, UsageError

# A RuntimeClass names a handler by a DNS label (k8s.io/api, node/v1, RuntimeClass.handler).
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


class Tree(Protocol):
    """The files of a machine, as the plans see them."""

    def read(self, path: str) -> str | None:
        """The text of a file, or None if it isn't there."""

    def match(self, pattern: str) -> tuple[str, ...]:
        """The files that a pattern with `*` names, sorted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is to be registered.

    Args:
        name: the handler's.
        binary: the launcher, as the engine will see it.
        copy_section: for a containerd that replaces a plugin's section by a drop-in's: copy it into ours.
        major: containerd's major version, or None where it can't be asked.
    """

    name: str
    binary: str
    copy_section: bool = False
    major: int | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UsageError(f"{self.name!r} can't be a runtime handler's name: it is no DNS label")
        if not self.binary.startswith("/") or not self.binary.isprintable() or set(self.binary) & set("\"'\\"):
            raise UsageError(f"--binary: {self.binary!r} is not an absolute path without quotes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One file of ours.

    Args:
        path: where it belongs.
        text: all of it; an empty string if there is nothing to write.
        restart: what makes the engine read it.
        refused: why it must not be written, and what to do instead.
        missing: what the engine needs besides, in files that are not ours.
        notes: what is good to know.
    """

    path: str
    text: str
    restart: str
    refused: str = ""
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """How an engine is planned for; `places` is where a registration of ours may lie, `whose` tells whose a file is."""

    plan: Callable[[Tree, Request], Plan]
    places: Callable[[Tree, str], tuple[str, ...]]
    whose: Callable[[str], mark.Whose] = mark.whose


def read_toml(text: str, path: str) -> dict[str, Any]:
    """Parse a file's text. Raises ConfigError: it isn't TOML."""
    try:
        return load_toml(text)
    except ValueError as err:
        raise ConfigError(f"{path} is not valid TOML: {err}") from None


def sub(data: dict[str, Any], *keys: str) -> dict[str, Any]:
    """A table within tables; an empty one if it isn't there, or isn't a table."""
    found: Any = data
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def toml_table(path: tuple[str, ...], content: dict[str, Any]) -> str:
    """A table within others, as TOML."""
    for name in reversed(path):
        content = {name: content}
    return dump_toml(content)
