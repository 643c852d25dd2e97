"""Whether the seccomp programs in the images let through what the new config.json's profile refuses. Pure.

Each finding has a call to show for it: one that the program lets through, followed along its path, and that the profile
does not, by libseccomp's rules. What has no such call, or needs arguments that weren't thought of, is not found.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from grit_runtime.workflow import bpf, seccomp
from grit_runtime.workflow.bpf import FULL, Condition

# By uname's word: runc's for an architecture (and libseccomp's number for it), the kernel's number for it
# (linux/audit.h), and what is in the numbers of its system calls.
_X32 = 0x40000000
_ARCHITECTURES = {
    "x86_64": (
        ("SCMP_ARCH_X86_64", 0xC000003E, 0xC000003E, 0),
        ("SCMP_ARCH_X86", 0x40000003, 0x40000003, 0),
        ("SCMP_ARCH_X32", 0x4000003E, 0xC000003E, _X32),
    ),
    "aarch64": (("SCMP_ARCH_AARCH64", 0xC00000B7, 0xC00000B7, 0), ("SCMP_ARCH_ARM", 0x40000028, 0x40000028, 0)),
}
_64_BITS = ("SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64")  # of the others libseccomp compares half an argument, x32 too
_NUMBERS = 640  # more than any architecture has
_SHARED = ("socketcall", "ipc")  # libseccomp allows those for each of the calls that they stand for
_ARGUMENTS = 6
_MOST_TRIED = 4096
_MOST_PAIRED = 16
_BITS = tuple(1 << bit for bit in range(32))

Arguments = tuple[int, ...]


class Numbers(Protocol):
    """`host.syscalls.Library`."""

    def number(self, architecture: int, name: str) -> int | None: ...

    def name(self, architecture: int, number: int) -> str: ...


def allowed_beyond(
    chain: Iterable[bpf.Program], profile: Mapping[str, Any], machine: str, numbers: Numbers
) -> list[str] | None:
    """System calls that a thread's programs let through, and the profile doesn't; empty for none that can be shown,
    None for programs that can't be judged.

    All of a thread's programs hold. So one that lets through no more than the profile is enough: the runtime's own,
    with whatever the container has added.
    """
    least: list[str] | None = None
    for program in chain:
        try:
            beyond = _beyond(program, profile, machine, numbers)
        except bpf.NotJudgedError:
            continue
        if not beyond:
            return []
        least = beyond if least is None or len(beyond) < len(least) else least
    return least


def _beyond(program: bpf.Program, profile: Mapping[str, Any], machine: str, numbers: Numbers) -> list[str]:
    found = list[str]()
    listed = profile.get("architectures")
    granted = set(listed) if isinstance(listed, list) else set()
    if machine not in _ARCHITECTURES:
        raise bpf.NotJudgedError
    native = _ARCHITECTURES[machine][0]
    for word, library, kernel, bit in _ARCHITECTURES[machine]:
        rules = Rules(profile, library, numbers) if word == native[0] or word in granted else None
        wide = word in _64_BITS
        asked = _asked(rules, library, bit, numbers, wide=wide)
        more = _of_architecture(program, kernel, rules, asked, wide=wide)
        found += more if word == native[0] else [f"{name} of {word}" for name in more]
    return found


def _asked(rules: "Rules | None", library: int, bit: int, numbers: Numbers, *, wide: bool) -> dict[int, str]:
    """The system calls that a profile does not let through whatever their arguments are."""
    found = {}
    for number in range(bit, bit + _NUMBERS):
        name = numbers.name(library, number)
        if (
            name
            and not (rules and rules.always(name))
            and (wide or name not in _SHARED)
            and not (rules and rules.may_mean(name))
        ):
            found[number] = name
    return found


def _of_architecture(
    program: bpf.Program, kernel: int, rules: "Rules | None", asked: dict[int, str], *, wide: bool
) -> list[str]:
    found = []
    for path in bpf.passing(program, kernel):
        for number in [each for each in asked if path.first <= each <= path.last and each not in path.but]:
            tried = _arguments(path.conditions, rules.examples(asked[number]) if rules else [], number, wide=wide)
            if any(rules is None or not rules.passes(asked[number], arguments) for arguments in tried):
                found.append(asked.pop(number))
    return found


def _arguments(conditions: tuple[Condition, ...], shown: list[int], number: int, *, wide: bool) -> Iterator[Arguments]:
    """Arguments with which a call takes this path: zeros, where nothing is said, and what is near to what is."""
    about: dict[int, list[Condition]] = {}
    for condition in conditions:
        about.setdefault(condition[0], []).append(condition)
    if not all(bpf.holds(each, number) for each in about.pop(bpf.NUMBER, [])):
        return
    told = {half for value in shown for half in (value & FULL, value >> 32)}
    near = {0, 1, FULL} | {half + step & FULL for half in told for step in (-1, 0, 1)}
    choices = []
    for field in range(bpf.ARGUMENTS, bpf.ARGUMENTS + 8 * _ARGUMENTS, 4):
        own = about.pop(field, [])
        high = (field - bpf.ARGUMENTS) % 8 == 4
        wanted = [0] if high and not wide else _candidates(own, near) if own or shown else [0]
        choices.append([value for value in wanted if all(bpf.holds(each, value) for each in own)])
    if not all(choices):
        return
    for fields in itertools.islice(_combined(choices), _MOST_TRIED):
        yield tuple(fields[at] | fields[at + 1] << 32 for at in range(0, 2 * _ARGUMENTS, 2))


def _candidates(conditions: list[Condition], near: set[int]) -> list[int]:
    """Values that may meet conditions: what they compare with, and around it, and then each bit alone."""
    constants = {each[3] for each in conditions}
    close = near | {one + step & FULL for one in constants for step in (-1, 0, 1)} | {FULL ^ one for one in constants}
    return [*sorted(close), *(bit for bit in _BITS if bit not in close)]


def _combined(choices: list[list[int]]) -> Iterator[tuple[int, ...]]:
    """The first of each; each argument's halves with all others at their first; then each half alone."""
    first = [each[0] for each in choices]
    yield tuple(first)
    for at in range(0, len(choices), 2):
        for low, high in itertools.product(choices[at][:_MOST_PAIRED], choices[at + 1][:_MOST_PAIRED]):
            yield (*first[:at], low, high, *first[at + 2 :])
    for at, values in enumerate(choices):
        for value in values[_MOST_PAIRED:]:
            yield (*first[:at], value, *first[at + 1 :])


class Rules:
    """A profile's rules for one architecture, as runc gives them to libseccomp (libcontainer/seccomp, matchCall)."""

    def __init__(self, profile: Mapping[str, Any], library: int, numbers: Numbers) -> None:
        self._by_default = profile.get("defaultAction") in seccomp.PASSING
        self._passed: dict[str, list[list[dict[str, Any]]]] = {}
        self._refused: dict[str, list[list[dict[str, Any]]]] = {}
        self._unknown = set[str]()
        for name, passing, conditions in seccomp.each_rule(profile):
            number = numbers.number(library, name)
            if number is None:
                self._unknown.add(name)
                continue
            into = self._passed if passing else self._refused
            # A negative one is a part of another, as i386 has sockets, and may have a number of its own since.
            own = name if number < 0 else numbers.name(library, number)
            into.setdefault(own, []).extend(_alternatives(conditions))

    def always(self, name: str) -> bool:
        """Whether a call goes through whatever its arguments are."""
        if self._by_default and name not in self._refused:
            return True
        return any(not conditions for conditions in self._passed.get(name, ()))

    def may_mean(self, name: str) -> bool:
        """Whether a rule has a name that this libseccomp doesn't know, and that may be this one's."""
        return name in self._unknown

    def passes(self, name: str, arguments: Arguments) -> bool:
        """Whether a call may go through."""
        if any(_match(each, arguments) for each in self._passed.get(name, ())):
            return True
        return self._by_default and not any(_match(each, arguments) for each in self._refused.get(name, ()))

    def examples(self, name: str) -> list[int]:
        """The values that the rules for a call compare with."""
        groups = [*self._passed.get(name, ()), *self._refused.get(name, ())]
        return [_value(each, key) for group in groups for each in group for key in ("value", "valueTwo")]


def _alternatives(conditions: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """All conditions of a rule hold together, unless two are about one argument: then each is a rule."""
    indexes = [each.get("index") for each in conditions]
    return [[each] for each in conditions] if len(set(map(str, indexes))) < len(indexes) else [conditions]


def _match(conditions: list[dict[str, Any]], arguments: Arguments) -> bool:
    return all(_holds(each, arguments) for each in conditions)


def _holds(condition: dict[str, Any], arguments: Arguments) -> bool:
    index, value, second = _value(condition, "index"), _value(condition, "value"), _value(condition, "valueTwo")
    given = arguments[index] if index < len(arguments) else 0
    return {
        "SCMP_CMP_NE": given != value,
        "SCMP_CMP_LT": given < value,
        "SCMP_CMP_LE": given <= value,
        "SCMP_CMP_EQ": given == value,
        "SCMP_CMP_GE": given >= value,
        "SCMP_CMP_GT": given > value,
        "SCMP_CMP_MASKED_EQ": given & value == second & value,
    }.get(str(condition.get("op")), True)


def _value(condition: dict[str, Any], key: str) -> int:
    found = condition.get(key)
    return found & 0xFFFFFFFFFFFFFFFF if isinstance(found, int) else 0
