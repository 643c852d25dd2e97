"""What a seccomp program lets through: a classic BPF program (linux/filter.h) over `struct seccomp_data`, along every
path. Pure.

libseccomp makes programs of loads, comparisons, one `and`, and returns; runc puts some of its own before
(libcontainer/seccomp/patchbpf). Such programs are followed exactly. Anything else isn't judged.
"""

from collections.abc import Iterator
from dataclasses import dataclass

Program = tuple[tuple[int, int, int, int], ...]
"""Instructions: code, jump if true, jump if false, constant."""
Condition = tuple[int, int, int, int, bool]
"""On a field of `seccomp_data`: its offset, a mask, a comparison, its constant, and how it came out."""

NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
FULL = 0xFFFFFFFF
_MOST_STEPS = 1 << 15
_MOST_CONDITIONS = 24

_LOAD, _JUMP, _EQUAL, _GREATER, _AT_LEAST, _SET, _AND, _RETURN = 0x20, 0x05, 0x15, 0x25, 0x35, 0x45, 0x54, 0x06
_ALLOW, _LOG = 0x7FFF0000, 0x7FFC0000  # linux/seccomp.h
_ACTION = 0xFFFF0000


class NotJudgedError(Exception):
    """A program has an instruction that isn't followed, or too many paths."""


@dataclass(frozen=True, slots=True)
class Passing:
    """System calls that go through on one path: those from `first` to `last`, less `but`, under all conditions."""

    first: int
    last: int
    but: frozenset[int]
    conditions: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class _At:
    """A place on a path: the accumulator is a field of `seccomp_data`, masked."""

    place: int
    field: int
    mask: int
    first: int
    last: int
    but: frozenset[int]
    conditions: tuple[Condition, ...]

    def to(self, place: int) -> "_At":
        return _At(place, self.field, self.mask, self.first, self.last, self.but, self.conditions)


def passing(program: Program, architecture: int) -> Iterator[Passing]:
    """Every path on which a call of this architecture (linux/audit.h) goes through.

    Raises:
        NotJudgedError: it can't be followed.
    """
    pending, steps = [_At(0, -1, FULL, 0, FULL, frozenset(), ())], 0
    while pending:
        at, steps = pending.pop(), steps + 1
        if steps > _MOST_STEPS or at.place >= len(program) or len(at.conditions) > _MOST_CONDITIONS:
            raise NotJudgedError
        code, _, _, constant = program[at.place]
        if code == _RETURN:
            if constant & _ACTION in (_ALLOW, _LOG):
                yield Passing(at.first, at.last, at.but, at.conditions)
        else:
            pending += _next(program[at.place], at, architecture)


def holds(condition: Condition, value: int) -> bool:
    """Whether a field of this value meets a condition."""
    _, mask, comparison, constant, wanted = condition
    return _compare(comparison, value & mask, constant) == wanted


def _next(instruction: tuple[int, int, int, int], at: _At, architecture: int) -> list[_At]:
    code, true, false, constant = instruction
    following = at.place + 1
    if code == _LOAD and constant % 4 == 0 and constant < 64:
        return [_At(following, constant, FULL, at.first, at.last, at.but, at.conditions)]
    if code == _AND and at.field >= 0:
        return [_At(following, at.field, at.mask & constant, at.first, at.last, at.but, at.conditions)]
    if code == _JUMP:
        return [at.to(following + constant)]
    if code not in (_EQUAL, _GREATER, _AT_LEAST, _SET) or at.field < 0:
        raise NotJudgedError
    if at.field == ARCHITECTURE:
        return [at.to(following + (true if _compare(code, architecture & at.mask, constant) else false))]
    if at.field == NUMBER and at.mask == FULL and code != _SET:
        return _by_number(code, constant, at, following + true, following + false)
    return [
        _At(following + jump, at.field, at.mask, at.first, at.last, at.but, (*at.conditions, condition))
        for jump, wanted in ((true, True), (false, False))
        for condition in [(at.field, at.mask, code, constant, wanted)]
        if _is_possible(at.conditions, condition)
    ]


def _by_number(code: int, constant: int, at: _At, true: int, false: int) -> list[_At]:
    if code == _EQUAL:
        found = []
        if at.first <= constant <= at.last and constant not in at.but:
            found.append(_At(true, at.field, FULL, constant, constant, frozenset(), at.conditions))
        if (at.first, at.last) != (constant, constant):
            found.append(_At(false, at.field, FULL, at.first, at.last, at.but | {constant}, at.conditions))
        return found
    least = constant + (code == _GREATER)  # the first number for which it is true
    above = _At(true, at.field, FULL, max(at.first, least), at.last, at.but, at.conditions)
    below = _At(false, at.field, FULL, at.first, min(at.last, least - 1), at.but, at.conditions)
    return [each for each in (above, below) if each.first <= each.last]


def _is_possible(known: tuple[Condition, ...], new: Condition) -> bool:
    return (*new[:4], not new[4]) not in known


def _compare(code: int, value: int, constant: int) -> bool:
    if code == _EQUAL:
        return value == constant
    if code == _GREATER:
        return value > constant
    if code == _AT_LEAST:
        return value >= constant
    return bool(value & constant)
