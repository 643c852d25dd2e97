"""A check, and what it says. Pure."""

import enum
from collections.abc import Callable
from dataclasses import dataclass

from grit_runtime.doctor.facts import Facts


class State(enum.Enum):
    """How a check ended."""

    OK = "ok"
    WARN = "warn"
    """It works, but something is slower, missing for some containers, or a surprise."""
    FAIL = "fail"
    """Checkpoints or restores fail on this node."""
    SKIP = "skip"
    """It doesn't apply here, or what it needs to know isn't to be had."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a check says.

    Args:
        found: what is so, in one sentence.
        todo: what to do about it; of every warning and failure.
        fix: commands that do it, where there are some.
    """

    state: State
    found: str
    todo: str = ""
    fix: tuple[str, ...] = ()


def ok(found: str) -> Verdict:
    """All is well."""
    return Verdict(state=State.OK, found=found)


def skip(why: str) -> Verdict:
    """It doesn't apply."""
    return Verdict(state=State.SKIP, found=why)


def warn(found: str, todo: str, *fix: str) -> Verdict:
    """It works all the same."""
    return Verdict(state=State.WARN, found=found, todo=todo, fix=fix)


def fail(found: str, todo: str, *fix: str) -> Verdict:
    """It doesn't work."""
    return Verdict(state=State.FAIL, found=found, todo=todo, fix=fix)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check: its id, by which docs/doctor.md explains it, and a pure function of the facts."""

    id: str
    judge: Callable[[Facts], Verdict]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A check's id, what it is about (an engine, a directory; empty for the node), and its verdict."""

    id: str
    about: str
    verdict: Verdict
