"""Whether a pod's containers go on from the checkpoint, or have started from scratch: by the runtime's own records
(docs/report.md). It is asked only about pods that may do the latter.
"""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from grit_runtime.agent.capture import Program
from grit_runtime.errors import GritError

_TIMEOUT = 60.0
_NO_RECORD = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Of a container."""

    name: str
    restored: bool | None
    """None: there is no record, which a call that was killed doesn't leave, and the newest 200 alone are kept."""
    why: str = ""
    """Why not, in the runtime's words."""


async def of(program: Program, identities: Mapping[str, str]) -> list[Outcome]:
    """What became of containers.

    Args:
        identities: name to the CRI's id.

    Raises:
        GritError: the runtime can't be asked.
    """
    return [_read(name, identity, await _records(program, identity)) for name, identity in identities.items()]


async def _records(program: Program, identity: str) -> list[Any]:
    try:
        process = await asyncio.create_subprocess_exec(
            *program.argv, "report", "--list", "--json", identity, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            said, why = await asyncio.wait_for(process.communicate(), _TIMEOUT)
        except TimeoutError:
            process.kill()
            await process.wait()
            raise GritError(f"the runtime's `report` did not end within {_TIMEOUT:.0f} s") from None
    except OSError as err:
        raise GritError(f"cannot call {' '.join(program.argv)}: {err.strerror}") from None
    if process.returncode == _NO_RECORD:
        return []
    try:
        found = json.loads(said)["operations"]
    except (ValueError, KeyError, TypeError):
        found = None
    if process.returncode or not isinstance(found, list):
        raise GritError(f"the runtime's `report` of {identity} failed: {why.decode(errors='replace').strip()[:500]}")
    return found


def _read(name: str, identity: str, records: list[Any]) -> Outcome:
    """By the newest record of its making."""
    for one in records:
        if isinstance(one, dict) and (one.get("operation"), one.get("container")) == ("create", identity):
            return Outcome(name=name, restored=one.get("outcome") == "ok", why=str(one.get("error", ""))[:500])
    return Outcome(name=name, restored=None)
