"""Reading a checkpoint's small images and documents, as far as they can be read: what is wrong with one is noted, and
the rest goes on.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from grit_runtime.criu import raw
from grit_runtime.errors import CheckpointError
from grit_runtime.inspection.store import Store

_MOST = 50  # problems
_LARGEST = 1 << 64
Found = TypeVar("Found")


@dataclass(slots=True, kw_only=True)
class Reader:
    """A checkpoint's files and what is wrong with them."""

    store: Store
    problems: list[str] = field(default_factory=list)
    more: int = 0
    """Problems beyond those that are told."""

    def note(self, problem: str) -> None:
        """Something is wrong."""
        if len(self.problems) < _MOST:
            self.problems.append(problem)
        else:
            self.more += 1

    def attempt(self, what: str, do: Callable[[], Found], otherwise: Found) -> Found:
        """Do it; where a file isn't as it should be, note that."""
        try:
            return do()
        except CheckpointError as err:
            self.note(str(err))
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError) as err:
            self.note(f"{what} is damaged: {type(err).__name__} {err}")
        return otherwise

    def messages(self, name: str, magic: str) -> list[Any]:
        """The messages of an image; none where it isn't there."""
        if name not in self.store.sizes:
            return []
        empty: list[Any] = []
        return self.attempt(f"image {name}", lambda: raw.decode(self.store.read(name), name, magic), empty)

    def first(self, name: str, magic: str) -> Any:
        """An image's first message, or None."""
        return next(iter(self.messages(name, magic)), None)

    def document(self, name: str, *, beside: bool = False) -> dict[str, Any]:
        """A JSON object; an empty one where it isn't there."""
        if name not in (self.store.beside if beside else self.store.sizes):
            return {}
        empty: dict[str, Any] = {}
        return self.attempt(name, lambda: _object(name, self.store.read(name, beside=beside)), empty)


def _object(name: str, data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except RecursionError:
        raise CheckpointError(f"{name} is damaged: nested too deeply") from None
    except ValueError as err:
        raise CheckpointError(f"{name} is damaged: {err}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{name} is damaged: it holds no JSON object")
    return found


def at(document: Any, *keys: str) -> dict[str, Any]:
    """An object within a document, empty where there is none."""
    for key in keys:
        document = document.get(key) if isinstance(document, dict) else None
    return document if isinstance(document, dict) else {}


def objects(document: Any, *keys: str) -> list[dict[str, Any]]:
    """A list of objects within a document, empty where there is none."""
    found = at(document, *keys[:-1]).get(keys[-1])
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def text(value: Any) -> str:
    """A string or number of a document as text; empty for anything else."""
    return str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else ""


def texts(document: dict[str, Any]) -> dict[str, str]:
    """The members of an object that can be said in a word."""
    return {str(key): text(value) for key, value in document.items() if text(value)}


def number(value: Any) -> int | None:
    """A number of bytes, pages, or the like; None for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _LARGEST else None
