"""Effects that survive SIGKILL.

containerd may kill us at any instruction (PDEATHSIG, a request's deadline). So everything that we change outside our
own workspace is an effect: an object that can describe itself, apply itself and undo itself, written to a journal on
tmpfs BEFORE it is applied. The next call for the container, or `grit-runtime recover`, reads the journal and undoes
what stands there, last first. An undo must therefore work when its apply never ran, or ran half, or was undone before;
and it removes only what is still as we left it.
"""

import contextlib
import errno
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from grit_runtime.errors import GritError, RecoveryError
from grit_runtime.host import proc
from grit_runtime.host.workspace import Workspace

_KINDS: dict[str, type["Effect"]] = {}
_more: list[Callable[[], None]] = []


@dataclass(frozen=True)
class Effect:
    """A change of the machine. Subclasses are frozen dataclasses of JSON values."""

    kind: ClassVar[str] = ""

    def __init_subclass__(cls) -> None:
        _KINDS[cls.kind] = cls

    def describe(self) -> str:
        """What it does, for a log line."""
        raise NotImplementedError

    def apply(self) -> None:
        """Do it."""
        raise NotImplementedError

    def undo(self) -> None:
        """Take it back, whether or not it was done."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What a journal holds: its header, the effects not undone, and the last phase that was reached."""

    header: dict[str, Any]
    effects: tuple[tuple[int, Effect], ...]
    phase: str


class Transaction:
    """Applies effects and remembers them in a workspace's journal."""

    def __init__(self, workspace: Workspace, header: dict[str, Any]) -> None:
        self.workspace = workspace
        self.header = header
        self._effects: list[tuple[int, Effect]] = []
        self._next = 0
        try:
            how = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._fd = os.open(workspace.journal, how, 0o600)
        except OSError as err:
            workspace.close(remove=err.errno != errno.EEXIST)
            raise GritError(f"cannot make the journal {workspace.journal}: {err.strerror}") from None
        try:
            self._write({"header": header})
        except BaseException:
            self.close()
            raise

    def do(self, effect: Effect) -> None:
        """Journal the effect, then apply it."""
        number, self._next = self._next, self._next + 1
        arguments = asdict(effect)
        self._write({"effect": effect.kind, "n": number, "args": arguments})
        self._effects.append((number, effect))
        effect.apply()
        self._write({"applied": number})

    def amend(self, more: dict[str, Any]) -> None:
        """Add to the header what was found out since."""
        self.header = {**self.header, **more}
        self._write({"header": self.header})

    def phase(self, name: str) -> None:
        """Record that a point was reached from which recovery goes another way."""
        self._write({"phase": name})

    def undo(self, effect: Effect) -> None:
        """Take back one effect before the end."""
        (number,) = [number for number, known in self._effects if known is effect]
        effect.undo()
        self._write({"undone": number})
        self._effects.remove((number, effect))

    def rollback(self) -> None:
        """Undo everything, last first, and forget the transaction.

        Raises:
            RecoveryError: some undo failed; the journal stays for `grit-runtime recover`.
        """
        undo_all(tuple(self._effects), self._write)
        self.close()

    def abort(self, err: BaseException) -> None:
        """Roll back because of `err`, which the caller raises on; what could not be undone is added to its message.

        Raises:
            RecoveryError: as `rollback`, if `err` is none of our errors and so has no message for the user.
        """
        proc.finish_undisturbed()
        try:
            self.rollback()
        except RecoveryError as failure:
            if not isinstance(err, GritError):
                raise
            err.args = (f"{err.args[0]}; and {failure}",)

    def close(self, *, keep: bool = False) -> None:
        """End the transaction: with `keep`, the journal stays open for a later call; otherwise the workspace goes."""
        os.close(self._fd)
        self.workspace.close(remove=not keep)

    def _write(self, entry: dict[str, Any]) -> None:
        try:
            append(self._fd, entry)
        except OSError as err:
            raise GritError(f"cannot write the journal {self.workspace.journal}: {err.strerror}") from None


def append(fd: int, entry: dict[str, Any]) -> None:
    """Add one line to a journal in one write: after a kill it is there whole, or it is the torn last line.

    Raises OSError: there is no room for it; nothing of it is there then, so that another line may follow.
    """
    data = (json.dumps(entry, separators=(",", ":")) + "\n").encode()
    done = os.write(fd, data)
    if done != len(data):
        os.ftruncate(fd, os.fstat(fd).st_size - done)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def undo_all(effects: tuple[tuple[int, Effect], ...], write: Any) -> None:
    """Undo effects in reverse, going on past failures.

    Raises:
        RecoveryError: what could not be undone, each with its reason.
    """
    failures = []
    for number, effect in reversed(effects):
        try:
            effect.undo()
        except (OSError, GritError) as err:
            failures.append(f"{effect.describe()}: {err}")
        else:
            # Where there is no room to say so, a later process undoes it again, which does nothing.
            with contextlib.suppress(OSError, GritError):
                write({"undone": number})
    if failures:
        raise RecoveryError(f"could not undo: {'; '.join(failures)}", hint="see `grit-runtime recover`")


def read_journal(path: str) -> Record | None:
    """Read a journal; None if there is none, or none whose header was written.

    Raises:
        RecoveryError: it holds something that this version doesn't know.
    """
    header: dict[str, Any] = {}
    effects: dict[int, Effect] = {}
    phase = ""
    for entry in _entries(path):
        if "header" in entry:
            header = entry["header"]
        elif "effect" in entry:
            effects[entry["n"]] = _effect(path, entry)
        elif "undone" in entry:
            effects.pop(entry["undone"], None)
        elif "phase" in entry:
            phase = entry["phase"]
    if not header:
        return None
    return Record(header=header, effects=tuple(effects.items()), phase=phase)


def _entries(path: str) -> Iterator[dict[str, Any]]:
    try:
        with open(path, "rb") as stream:
            lines = stream.read().split(b"\n")
    except FileNotFoundError:
        return
    for line in lines[:-1]:  # what follows the last newline was torn by a kill: its effect was never applied
        try:
            entry = json.loads(line)
        except ValueError as err:
            raise RecoveryError(f"journal {path} is damaged: {err}") from None
        if isinstance(entry, dict):
            yield entry


def define_later(define: Callable[[], None]) -> None:
    """Have `define` called when a journal names an effect that isn't known: it imports what defines others."""
    _more.append(define)


def _effect(path: str, entry: dict[str, Any]) -> Effect:
    if entry["effect"] not in _KINDS:
        for define in _more:
            define()
    kind = _KINDS.get(entry["effect"])
    if kind is None or {f.name for f in fields(kind)} != set(entry["args"]):
        raise RecoveryError(f"journal {path} holds an effect of another version: {entry['effect']}")
    return kind(**entry["args"])
