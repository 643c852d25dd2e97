"""Documents that people and other programs write: YAML, TOML, and JSON schemas.

The one place that knows PyYAML, jsonschema and tomli_w; they are imported when needed only.
"""

import json
import os
from typing import Any

from grit_runtime import conform

_MAX_NODES = 500_000
_MAX_DEPTH = 32


def load_yaml(text: bytes) -> Any:
    """Parse YAML (or JSON, which is YAML), of plain types only.

    A key that stands twice is refused: two readers must never read two different values. So is what unfolds, by its
    aliases, to more than a reader should be asked to walk through.

    Raises:
        ValueError: it isn't YAML, or not of this kind; the message says what.
    """
    import yaml

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc] # chosen at run time
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            seen = set()
            for key, _ in node.value:
                if isinstance(key.value, str) and key.value in seen:
                    raise yaml.YAMLError(f"the key {key.value!r} stands twice")
                if isinstance(key.value, str):
                    seen.add(key.value)
            made: dict[Any, Any] = super().construct_mapping(node, deep)
            return made

    try:
        data = yaml.load(text, Loader)  # a SafeLoader by inheritance
    except (yaml.YAMLError, ValueError, RecursionError) as err:
        raise ValueError(f"{err}") from None
    _require_bounded(data)
    return data


def dump_yaml(data: Any) -> str:
    """A document as YAML, its keys in their order."""
    import yaml

    return str(yaml.safe_dump(data, sort_keys=False, width=110))


def violations(data: Any, schema: str) -> list[str]:
    """Where `data` isn't as a JSON schema of this package says, one line each.

    Args:
        schema: the schema's file, relative to the package.
    """
    with open(os.path.join(os.path.dirname(__file__), schema), encoding="utf-8") as stream:
        wanted = json.load(stream)
    try:
        if conform.conforms(data, wanted):
            return []
    except conform.UnknownKeywordError:
        pass  # jsonschema knows it
    import jsonschema

    found = sorted(jsonschema.Draft202012Validator(wanted).iter_errors(data), key=lambda e: [str(p) for p in e.path])
    return [f"{'.'.join(str(p) for p in e.path) or 'top level'}: {e.message}" for e in found]


def load_toml(text: str) -> dict[str, Any]:
    """Parse TOML. Raises ValueError: it isn't TOML; the message says where."""
    import tomllib

    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def dump_toml(table: dict[str, Any]) -> str:
    """Write a table as TOML, which the standard library only reads. Tables come after the plain values beside them."""
    import tomli_w

    return tomli_w.dumps(table)


def _require_bounded(data: Any) -> None:
    left, stack = _MAX_NODES, [(data, 0)]
    while stack:
        value, depth = stack.pop()
        left -= 1
        if left < 0 or depth > _MAX_DEPTH:
            raise ValueError("it is nested too deeply, or unfolds to too much")
        if isinstance(value, dict):
            stack.extend((item, depth + 1) for item in value.values())
        elif isinstance(value, list):
            stack.extend((item, depth + 1) for item in value)
