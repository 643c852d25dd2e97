"""The configuration reference: config.schema.json says what a key means, `Config` its default."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grit_runtime
from grit_runtime.config import Config

SCHEMA = Path(grit_runtime.__file__).with_name("config.schema.json")

BEGIN = "<!-- generated from grit_runtime/config.schema.json: edit that, and run `make docs` -->\n"
END = "<!-- end of what is generated -->\n"
_HEAD = "| key | value | default | meaning |\n|---|---|---|---|\n"


def filled(page: str) -> str:
    """The page with what stands between its two marks made new."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError("docs/configuration.md has lost a mark: " + (END if begin else BEGIN).strip())
    return before + BEGIN + "\n" + reference() + "\n" + END + after


def reference() -> str:
    """A table of the keys of the first level, and a section with a table for each key that holds others."""
    schema = json.loads(SCHEMA.read_text())
    definitions, keys = schema["$defs"], schema["properties"]
    plain = {key: entry for key, entry in keys.items() if "properties" not in entry}
    parts = [_HEAD + "".join(_row(key, entry, definitions) for key, entry in plain.items())]
    for name, section in keys.items():
        if name not in plain:
            rows = "".join(_row(key, entry, definitions) for key, entry in _leaves(name, section))
            parts.append(f"## {name}\n\n{_words(section['description'])}\n\n{_HEAD}{rows}")
    return "\n".join(parts)


def _leaves(prefix: str, section: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for key, entry in section["properties"].items():
        if "properties" in entry:
            yield from _leaves(f"{prefix}.{key}", entry)
        else:
            yield f"{prefix}.{key}", entry


def _row(key: str, entry: dict[str, Any], definitions: dict[str, Any]) -> str:
    if "description" not in entry:
        raise ValueError(f"config.schema.json: {key} has no description, which is what the reference says of it")
    name = entry.get("$ref", "").rpartition("/")[2]
    whole = {**definitions.get(name, {}), **entry}
    default = _default(_value(key), in_bytes="bytes" in key)
    return f"| `{key}` | {_kind(whole)} | {default} | {_words(entry['description'])} |\n"


def _value(key: str) -> Any:
    names = key.replace("-", "_").split(".")
    found: Any = Config()
    for name in ["_".join(names)] if names[0] == "criu" else names:
        found = getattr(found, name)
    return found


def _kind(entry: dict[str, Any]) -> str:
    if "enum" in entry:
        return ", ".join(f"`{word}`" for word in entry["enum"])
    kind: str = entry["type"]
    if kind == "string":
        return "path" if entry.get("pattern", "").startswith("^/") else "string"
    if kind == "array":
        return {"path": "list of paths", "string": "list of strings"}.get(
            item := _kind(entry["items"]), f"list of {item}"
        )
    if kind in ("integer", "number"):
        least = f"> {entry['exclusiveMinimum']}" if "exclusiveMinimum" in entry else f">= {entry.get('minimum', 0)}"
        return f"{kind} {least}" + (f", <= {entry['maximum']}" if "maximum" in entry else "")
    return {"object": "mapping"}.get(kind, kind)


def _default(value: Any, *, in_bytes: bool = False) -> str:
    if value is True or value is False:
        return "`true`" if value else "`false`"
    if value in ("", (), {}):
        return "none"
    if isinstance(value, tuple):
        return ", ".join(f"`{item}`" for item in value)
    if isinstance(value, dict):
        return ", ".join(f"`{name}: {str(item).lower() if item is True else item}`" for name, item in value.items())
    return f"`{value}` ({_size(value)})" if in_bytes else f"`{value}`"


def _size(number: int) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number} {unit}"
        number //= 1024
    return f"{number} TiB"


def _words(description: str) -> str:
    """A description as Markdown: what names another page is a link to it."""
    linked = re.sub(r"docs/([a-z-]+\.md)", r"[\1](\1)", description)
    linked = re.sub(r"\b([A-Z]+\.md)", r"[\1](../\1)", linked)
    return linked.replace("|", "\\|")
