"""Seccomp programs as libseccomp makes them, against the profiles of config.json."""

import copy
import ctypes
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grit_runtime.criu.filters import Filters
from grit_runtime.errors import CheckpointError
from grit_runtime.host import syscalls
from grit_runtime.workflow import filters

pytestmark = pytest.mark.needs("libseccomp")

_ACTIONS = {"SCMP_ACT_ALLOW": 0x7FFF0000, "SCMP_ACT_ERRNO": 0x00050001, "SCMP_ACT_LOG": 0x7FFC0000}
_OPERATIONS = ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ")
_TOKENS = {"SCMP_ARCH_X86": 0x40000003, "SCMP_ARCH_X32": 0x4000003E, "SCMP_ARCH_ARM": 0x40000028}
_MACHINE = os.uname().machine


class _Argument(ctypes.Structure):
    _fields_ = (("index", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


def _compiled(profile: dict[str, Any]) -> bytes:
    """The program that runc has libseccomp make."""
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(_ACTIONS[profile["defaultAction"]])))
    for word in profile.get("architectures", ()):
        assert library.seccomp_arch_add(context, ctypes.c_uint32(_TOKENS[word])) == 0
    for rule in profile["syscalls"]:
        if rule["action"] == profile["defaultAction"]:
            continue
        for name in rule["names"]:
            made = [
                _Argument(each["index"], 1 + _OPERATIONS.index(each["op"][9:]), each["value"], each.get("valueTwo", 0))
                for each in rule.get("args", ())
            ]
            number = library.seccomp_syscall_resolve_name(name.encode())
            array = (_Argument * len(made))(*made)
            action = ctypes.c_uint32(_ACTIONS[rule["action"]])
            assert library.seccomp_rule_add_array(context, action, number, len(made), array) == 0
    with tempfile.TemporaryFile() as stream:
        assert library.seccomp_export_bpf(context, stream.fileno()) == 0
        stream.seek(0)
        data = stream.read()
    library.seccomp_release(context)
    return data


def _beyond(old: dict[str, Any], new: dict[str, Any]) -> list[str] | None:
    numbers = syscalls.library()
    assert numbers
    chain = Filters(programs=(_compiled(old),), before=(None,)).chain(0)
    return filters.allowed_beyond(chain, new, _MACHINE, numbers)


def _profile(*rules: tuple[str, list[dict[str, Any]]], default: str = "SCMP_ACT_ERRNO", **more: Any) -> dict[str, Any]:
    action = "SCMP_ACT_ALLOW" if default == "SCMP_ACT_ERRNO" else "SCMP_ACT_ERRNO"
    return {
        "defaultAction": default,
        "syscalls": [{"names": [name], "action": action, "args": list(conditions)} for name, conditions in rules],
        **more,
    }


def _when(index: int, op: str, value: int, second: int = 0) -> dict[str, Any]:
    return {"index": index, "op": f"SCMP_CMP_{op}", "value": value, "valueTwo": second}


_CLONE = ("clone", [_when(0, "MASKED_EQ", 0x7E020000)])
_BASE = _profile(("read", []), ("write", []), ("personality", [_when(0, "EQ", 0)]), _CLONE)


@pytest.mark.parametrize(
    ("old", "expected"),
    [
        (_BASE, []),
        (_profile(("read", [])), []),
        (_profile(("read", []), ("mount", [])), ["mount"]),
        (_profile(("mount", [_when(3, "EQ", 1)])), ["mount"]),
        (_profile(("personality", [])), ["personality"]),
        (_profile(("personality", [_when(0, "EQ", 8)])), ["personality"]),
        (_profile(("personality", [_when(0, "EQ", 1 << 40)])), ["personality"]),
        (_profile(("personality", [_when(0, "LE", 8)])), ["personality"]),
        (_profile(("personality", [_when(0, "EQ", 0), _when(1, "EQ", 7)])), []),
        (_profile(("clone", [])), ["clone"]),
        (_profile(("clone", [_when(0, "MASKED_EQ", 0x7E000000)])), ["clone"]),
        (_profile(("clone", [_when(0, "MASKED_EQ", 0x7E020000)]), ("bpf", [])), ["bpf"]),
    ],
    ids=str,
)
def test_what_a_program_lets_through_beyond_a_profile_is_named(old: dict[str, Any], expected: list[str]) -> None:
    assert sorted(_beyond(old, _BASE) or []) == expected


def test_a_program_that_refuses_little_lets_through_much() -> None:
    lax = _profile(("mount", []), default="SCMP_ACT_ALLOW")
    found = _beyond(lax, _BASE) or []
    assert "bpf" in found
    assert "init_module" in found
    assert "mount" not in found
    assert _beyond(lax, lax) == []
    assert _beyond(lax, _profile(("bpf", []), default="SCMP_ACT_ALLOW")) == ["bpf"]


@pytest.mark.skipif(_MACHINE != "x86_64", reason="the other architectures of x86_64")
def test_another_architecture_that_the_profile_does_not_have_is_named() -> None:
    both = {**_BASE, "architectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]}
    assert _beyond(both, both) == []
    assert _beyond(_BASE, both) == []
    found = _beyond(both, _BASE) or []
    assert "read of SCMP_ARCH_X86" in found
    assert "read of SCMP_ARCH_X32" in found


_DEFAULT = Path("/usr/share/containers/seccomp.json")


@pytest.mark.skipif(not _DEFAULT.exists(), reason="no profile of podman's")
def test_the_profile_that_engines_have_by_default_fits_itself() -> None:
    rules = [rule for rule in json.loads(_DEFAULT.read_text())["syscalls"] if rule["action"] == "SCMP_ACT_ALLOW"]
    plain = [rule for rule in rules if not any(rule.get(key) for key in ("includes", "excludes"))]
    numbers = syscalls.library()
    assert numbers
    token = 0xC000003E if _MACHINE == "x86_64" else 0xC00000B7
    known = [
        (name, [{"valueTwo": 0, **each} for each in rule.get("args") or []])
        for rule in plain
        for name in rule["names"]
        if numbers.number(token, name) is not None
    ]
    also = ["SCMP_ARCH_X86", "SCMP_ARCH_X32"] if _MACHINE == "x86_64" else []
    profile = _profile(*known, architectures=also)
    added = ["init_module", *(f"init_module of {word}" for word in also)]
    assert len(known) > 300
    assert _beyond(profile, profile) == []
    assert _beyond(_profile(*known, ("init_module", []), architectures=also), profile) == added


def test_of_a_thread_s_programs_one_that_is_enough_is_enough() -> None:
    numbers = syscalls.library()
    assert numbers
    strict, lax = _compiled(_BASE), _compiled(_profile(("read", []), ("bpf", [])))
    odd = bytes((6, 0, 0, 0, 0, 0, 0xFF, 0x7F))  # returns ALLOW at once
    read = Filters(programs=(lax, strict, odd), before=(None, 0, 1))
    assert filters.allowed_beyond(read.chain(2), _BASE, _MACHINE, numbers) == []
    assert filters.allowed_beyond(read.chain(0), _BASE, _MACHINE, numbers) == ["bpf"]
    unknown = bytes((7, 0, 0, 0, 0, 0, 0, 0)) + odd  # tax
    only = Filters(programs=(unknown,), before=(None,))
    assert filters.allowed_beyond(only.chain(0), _BASE, _MACHINE, numbers) is None
    assert filters.allowed_beyond(read.chain(0), _BASE, "vax", numbers) is None


@pytest.mark.parametrize(
    "found", [Filters(), Filters((b"x",), (None,)), Filters((b"",), (None,)), Filters((b"\6" + bytes(7),), (0,))]
)
def test_a_damaged_filter_is_an_error(found: Filters) -> None:
    with pytest.raises(CheckpointError, match=r"seccomp\.img is damaged"):
        found.chain(0)


def test_a_program_with_many_paths_is_given_up() -> None:
    """A forged one may have more paths than anybody can follow."""
    numbers = syscalls.library()
    assert numbers
    fork = [part for at in range(60) for part in ((0x20, 0, 0, 16 + 4 * (at % 12)), (0x45, 0, 0, 1 << at % 32))]
    assert filters.allowed_beyond([(*fork, (6, 0, 0, 0x7FFF0000))], _BASE, _MACHINE, numbers) is None


_NAMES = st.sampled_from(["read", "personality", "clone", "mount", "bpf", "openat"])
_CONDITIONS = st.lists(
    st.builds(
        _when, st.integers(0, 2), st.sampled_from(_OPERATIONS), st.sampled_from([0, 1, 8, 0x7E020000, 1 << 40]),
        st.sampled_from([0, 1, 8]),
    ),
    max_size=2, unique_by=lambda each: each["index"],
)  # fmt: skip
_PROFILES = st.builds(
    lambda rules, default: _profile(*rules, default=default),
    # libseccomp 2.5 makes a program of two rules for one call, `< 0` and `< 2**40`, that refuses neither.
    st.lists(st.tuples(_NAMES, _CONDITIONS), max_size=6, unique_by=lambda rule: rule[0]),
    st.sampled_from(["SCMP_ACT_ERRNO", "SCMP_ACT_ALLOW"]),
)


@settings(max_examples=60, deadline=None)
@given(_PROFILES)
def test_a_profile_s_own_program_is_never_beyond_it(profile: dict[str, Any]) -> None:
    assert _beyond(profile, profile) == []


@settings(max_examples=40, deadline=None)
@given(_PROFILES, _NAMES)
def test_a_call_that_only_the_old_profile_lets_through_is_always_named(profile: dict[str, Any], name: str) -> None:
    old, new = copy.deepcopy(profile), copy.deepcopy(profile)
    old["defaultAction"] = new["defaultAction"] = "SCMP_ACT_ERRNO"
    for each in (old, new):
        each["syscalls"] = [
            {**rule, "action": "SCMP_ACT_ALLOW"} for rule in each["syscalls"] if rule["names"] != [name]
        ]
    old["syscalls"].append({"names": [name], "action": "SCMP_ACT_ALLOW", "args": []})
    assert _beyond(old, new) == [name]


def test_a_chain_that_leads_in_a_circle_or_is_too_long_is_damaged() -> None:
    allow = bytes((6, 0, 0, 0, 0, 0, 0xFF, 0x7F))
    with pytest.raises(CheckpointError):
        Filters((allow, allow), (1, 0)).chain(0)
    assert len(Filters((allow,) * 32, (None, *range(31))).chain(31)) == 32
    with pytest.raises(CheckpointError):
        Filters((allow,) * 33, (None, *range(32))).chain(32)
