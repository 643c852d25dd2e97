"""Whether a document is as a JSON schema says: a yes or no, without the import and the compilation of jsonschema, which
take longer than all that a restore does by itself.

It knows the keywords of this package's schemas and answers as jsonschema does (tests/unit/test_conform.py compares the
two). What is wrong, and any schema that says something else, is left to jsonschema, which has words for it.
"""

import re
from collections.abc import Callable
from typing import Any

Check = Callable[[Any, Any, "_Schema"], bool]


class UnknownKeywordError(Exception):
    """The schema says something that isn't known here."""


def conforms(data: Any, schema: dict[str, Any]) -> bool:
    """Whether `data`, of JSON's types, is as `schema` says.

    Raises:
        UnknownKeywordError: that can't be told.
    """
    return _Schema(schema).allows(data, schema)


class _Schema:
    """A schema with its `$defs`."""

    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root

    def allows(self, data: Any, schema: Any) -> bool:
        """Whether a part of the document is as a part of the schema says."""
        if isinstance(schema, bool):
            return schema
        for keyword, value in schema.items():
            if keyword in _SAY_NOTHING:
                continue
            if keyword == "$ref":
                allowed = self.allows(data, self._definition(value))
            elif keyword == "additionalProperties":
                allowed = self._allows_others(data, value, schema.get("properties", {}))
            elif keyword in _CHECKS:
                allowed = _CHECKS[keyword](data, value, self)
            else:
                raise UnknownKeywordError(keyword)
            if not allowed:
                return False
        return True

    def _definition(self, reference: str) -> Any:
        where, _, name = reference.rpartition("/")
        if where != "#/$defs" or name not in self._root.get("$defs", {}):
            raise UnknownKeywordError(reference)
        return self._root["$defs"][name]

    def _allows_others(self, data: Any, schema: Any, listed: dict[str, Any]) -> bool:
        others = [value for key, value in data.items() if key not in listed] if isinstance(data, dict) else []
        return all(self.allows(value, schema) for value in others)


_SAY_NOTHING = frozenset({"$schema", "$defs", "title", "description"})


def _is_number(data: Any) -> bool:
    return isinstance(data, int | float) and not isinstance(data, bool)


_TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda data: isinstance(data, dict),
    "array": lambda data: isinstance(data, list),
    "string": lambda data: isinstance(data, str),
    "boolean": lambda data: isinstance(data, bool),
    "number": _is_number,
    "integer": lambda data: _is_number(data) and (isinstance(data, int) or data.is_integer()),
}


def _type(data: Any, value: Any, _: _Schema) -> bool:
    if not isinstance(value, str) or value not in _TYPES:
        raise UnknownKeywordError(f"type {value}")
    return _TYPES[value](data)


def _enum(data: Any, value: Any, _: _Schema) -> bool:
    if not all(isinstance(word, str) for word in value):
        raise UnknownKeywordError("enum of anything but strings")
    return isinstance(data, str) and data in value


def _properties(data: Any, value: Any, schema: _Schema) -> bool:
    return not isinstance(data, dict) or all(schema.allows(data[key], value[key]) for key in value if key in data)


# Each says nothing of what isn't of its type. NaN is neither below nor above anything.
_CHECKS: dict[str, Check] = {
    "type": _type,
    "enum": _enum,
    "const": lambda data, value, schema: _enum(data, [value], schema),
    "properties": _properties,
    "required": lambda data, value, _: not isinstance(data, dict) or all(key in data for key in value),
    "propertyNames": lambda data, value, schema: (
        not isinstance(data, dict) or all(schema.allows(key, value) for key in data)
    ),
    "items": lambda data, value, schema: not isinstance(data, list) or all(schema.allows(item, value) for item in data),
    "minItems": lambda data, value, _: not isinstance(data, list) or len(data) >= value,
    "minLength": lambda data, value, _: not isinstance(data, str) or len(data) >= value,
    "maxLength": lambda data, value, _: not isinstance(data, str) or len(data) <= value,
    "pattern": lambda data, value, _: not isinstance(data, str) or re.search(value, data) is not None,
    "minimum": lambda data, value, _: not (_is_number(data) and data < value),
    "maximum": lambda data, value, _: not (_is_number(data) and data > value),
    "exclusiveMinimum": lambda data, value, _: not (_is_number(data) and data <= value),
    "oneOf": lambda data, value, schema: sum(schema.allows(data, one) for one in value) == 1,
    "anyOf": lambda data, value, schema: any(schema.allows(data, one) for one in value),
    "not": lambda data, value, schema: not schema.allows(data, value),
}
