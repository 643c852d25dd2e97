"""Names of CDI devices: vendor/class=name (SPEC.md, "Kind" and "Device name"; pkg/parser/parser.go)."""

import re

_QUALIFIER = re.compile(r"[A-Za-z](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?\Z")
_DEVICE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.:-]*[A-Za-z0-9])?\Z")


def is_kind(text: str) -> bool:
    """Whether it is vendor/class."""
    vendor, slash, group = text.partition("/")
    return bool(slash and _QUALIFIER.match(vendor) and _QUALIFIER.match(group))


def is_device(text: str) -> bool:
    """Whether it is the name of a device within its kind."""
    return bool(_DEVICE.match(text))


def is_qualified(text: str) -> bool:
    """Whether it is vendor/class=name."""
    kind, equals, name = text.partition("=")
    return bool(equals) and is_kind(kind) and is_device(name)
