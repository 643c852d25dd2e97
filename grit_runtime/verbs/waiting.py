"""Verbs on a container that has a workspace: one that `create` restored and that waits for `start`, or one that a
killed call left.

The first call after a kill puts right what was left, whatever its verb, and is then passed on. A container that waits
for `start` must look like any created one: `state` says so, `start` lets it run, `kill` and `delete` end it before any
of its code has run; each has its own file.
"""

import os
from dataclasses import dataclass

from grit_runtime.errors import BusyError
from grit_runtime.host.transaction import Record
from grit_runtime.host.workspace import Workspace, open_existing
from grit_runtime.verbs.call import Call
from grit_runtime.workflow import recover
from grit_runtime.workflow.context import Context

_WAIT_FOR_OTHERS = frozenset({"create", "start", "delete"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A restored container before its `start`; its workspace is locked."""

    call: Call
    context: Context
    workspace: Workspace
    record: Record


def find(call: Call) -> Waiting | None:
    """The waiting container that the call names, or None once there is nothing of ours in the way of passing the call
    on.
    """
    container = _container(call)
    if container is None:
        return None
    waits = call.invocation.verb in _WAIT_FOR_OTHERS
    try:
        workspace = open_existing(call.workspace_path(container), timeout=call.config.timeouts.lock if waits else 0)
    except BusyError:
        if waits:
            raise
        return None  # another call of ours is at work on it: what this one may do meanwhile is the downstream's to say
    if workspace is None:
        return None
    record = recover.settle(workspace)
    if record is None:
        workspace.close(remove=True)
        return None
    return Waiting(call=call, context=call.context(container), workspace=workspace, record=record)


def _container(call: Call) -> str | None:
    """The argument that names a container with a workspace, by the launcher's own rule."""
    try:
        call.workspace_path("")
    except OSError:
        return None  # a relative root, and no working directory: to the launcher nothing of ours is there either
    for word in call.invocation.args:
        plain = word and not word.startswith("-") and "/" not in word and word not in (".", "..")
        if plain and os.path.isdir(call.workspace_path(word)):
            return word
    return None
