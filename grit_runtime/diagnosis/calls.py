"""What failed calls have left beside CRIU's logs: the error line of each, and the journal of one that was killed.

A call that was refused by a plan, by trust or because a file was missing never ran CRIU, and has no log of CRIU's.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from grit_runtime import names
from grit_runtime.config import Config
from grit_runtime.errors import GritError, UsageError
from grit_runtime.host import workspace
from grit_runtime.host.transaction import read_journal
from grit_runtime.inspection import words
from grit_runtime.oci import log as logs
from grit_runtime.report import read as records
from grit_runtime.workflow import recover

REFUSED, KILLED, BUSY = "error-line", "killed-call", "at-work"
_LONGEST = 4000
_TEXT = re.compile(r'\blevel=error\b.*?\bmsg=("(?:[^"\\]|\\.)*"|\S+)')
_TODO = {
    REFUSED: "what the line says; `grit-runtime plan` names every problem of a restore, and changes nothing",
    KILLED: "nothing for the container's sake: the next call for it undoes what was begun, and `grit-runtime recover` "
    "does at once; look for who killed it: a deadline of the engine's or kubelet's, or the kernel (`dmesg`)",
    BUSY: "wait for its end",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call of ours that did not succeed, or goes on."""

    id: str
    path: str
    """What says so: a record, a journal or a log."""
    container: str
    operation: str
    said: str
    """The error line; of a killed call, how far it came."""
    time: float
    """Seconds since the epoch."""
    todo: str

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def left(config: Config, target: str) -> list[Call]:
    """The calls of a container (or the beginning of its id; empty: of all), the newest first."""
    found = [*_records(config, target), *_journals(config.state_dir, target)]
    return sorted(found, key=lambda call: -call.time)


def of_lines(path: str, lines: Sequence[str]) -> Call | None:
    """The last error in a log of the runtime's own (`--log`, in either format), or None."""
    text = "\n".join(lines)
    said = logs.last_error(text) or next((match[1] for line in reversed(lines) if (match := _TEXT.search(line))), "")
    return _call(REFUSED, path, "", "", said) if said else None


def render(calls: Sequence[Call]) -> str:
    """For people."""
    return "\n\n".join(_one(call) for call in calls) + "\n"


def _one(call: Call) -> str:
    who = f"  {call.operation} of container {call.container}: " if call.container else "  "
    return f"{call.path}\n{who}{call.id}\n       {call.said}\n     to do: {call.todo}"


def _records(config: Config, target: str) -> list[Call]:
    """The failed ones among the records in `log-dir`."""
    try:
        found, _ = records.everything(config, target)
    except UsageError:
        return []  # whoever may not read them has their own log to name
    return [_call(REFUSED, one.source, one.container, one.operation, one.error) for one in found if not one.ok]


def _journals(state_dir: str, target: str) -> list[Call]:
    """The calls that have a journal: killed, if nobody holds it; a container that waits for `start` has one, too."""
    found = []
    for path, container in recover.workspaces(state_dir):
        if not container.startswith(target):
            continue
        try:
            record = read_journal(os.path.join(path, names.JOURNAL))
        except (GritError, OSError) as err:
            found.append(_call(KILLED, os.path.join(path, names.JOURNAL), container, "", str(err)))
            continue
        if record is None or record.phase == recover.CREATED:
            continue
        operation, at_work = str(record.header.get("operation", "")), workspace.is_held(path)
        last = f", the last {record.effects[-1][1].describe()}" if record.effects else ""
        begun = f"{len(record.effects)} effects are not undone{last}"
        said = f"it is at work: {begun}" if at_work else f"the runtime was killed, and nobody has called since: {begun}"
        journal = os.path.join(path, names.JOURNAL)
        found.append(_call(BUSY if at_work else KILLED, journal, container, operation, said))
    return found


def _call(kind: str, path: str, container: str, operation: str, said: str) -> Call:
    try:
        when = os.stat(path).st_mtime
    except OSError:
        when = 0.0
    cut = [words.shown(text, _LONGEST) for text in (path, container, operation, said)]
    return Call(id=kind, path=cut[0], container=cut[1], operation=cut[2], said=cut[3], time=when, todo=_TODO[kind])
