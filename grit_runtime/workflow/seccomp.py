"""Whether one seccomp profile allows what another one doesn't (OCI runtime spec, config-linux.md, "Seccomp"). Pure.

The filters in the images are programs, and CRIU loads those: what the new config.json says comes too late for the
restored tasks. They were made of the profile that the old container had.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

PASSING = frozenset({"SCMP_ACT_ALLOW", "SCMP_ACT_LOG"})
_ALWAYS = "[]"
_MAX_RULES = 1 << 16


def is_confining(profile: dict[str, Any]) -> bool:
    """Whether a profile refuses anything."""
    return bool(profile) and (profile.get("defaultAction") not in PASSING or any(
        rule.get("action") not in PASSING for rule in _rules(profile)
    ))  # fmt: skip


def allowed_beyond(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """The system calls that `old` (empty for none) lets through and `new` doesn't, or not with the same arguments; `*`
    for whatever it doesn't name.
    """
    if not is_confining(new):
        return []
    passed, refused = _by_name(old, passing=True), _by_name(old, passing=False)
    more = []
    if old.get("defaultAction", "SCMP_ACT_ALLOW") in PASSING:
        if new.get("defaultAction") not in PASSING:
            return ["*"]
        more = [
            name
            for name, conditions in _by_name(new, passing=False).items()
            if _ALWAYS not in refused.get(name, ()) and not conditions <= refused.get(name, set())
        ]
    granted = _by_name(new, passing=True)
    by_default = new.get("defaultAction") in PASSING
    forbidden = _by_name(new, passing=False)
    for name, conditions in passed.items():
        if (by_default and name not in forbidden) or _ALWAYS in granted.get(name, ()):
            continue
        if not conditions <= granted.get(name, set()):
            more.append(name)
    return sorted(set(more))


def _rules(profile: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = profile.get("syscalls")
    return [rule for rule in found[:_MAX_RULES] if isinstance(rule, dict)] if isinstance(found, list) else []


def each_rule(profile: Mapping[str, Any]) -> Iterator[tuple[str, bool, list[dict[str, Any]]]]:
    """Every rule's system calls: name, whether it goes through, and the conditions on its arguments."""
    for rule in _rules(profile):
        names, conditions = rule.get("names"), rule.get("args")
        for name in names if isinstance(names, list) else ():
            listed = conditions if isinstance(conditions, list) else []
            yield str(name), rule.get("action") in PASSING, [each for each in listed if isinstance(each, dict)]


def _by_name(profile: dict[str, Any], *, passing: bool) -> dict[str, set[str]]:
    """System call to the conditions on its arguments under which it is let through, or isn't."""
    found: dict[str, set[str]] = {}
    for rule in _rules(profile):
        if (rule.get("action") in PASSING) == passing:
            condition = json.dumps(rule.get("args") or [], sort_keys=True)
            names = rule.get("names")
            for name in names if isinstance(names, list) else ():
                found.setdefault(str(name), set()).add(condition)
    return found
