"""`delete ID` of a container that `create` restored and that was never started.

runc deletes a created container without --force; to the downstream this one is running.
"""

from grit_runtime.verbs.waiting import Waiting
from grit_runtime.workflow import contents


def run(waiting: Waiting) -> int:
    """Kill and delete it, take back what the restore put outside of it, and forget the restore."""
    context = waiting.context
    context.downstream.require("delete", "--force", context.container, timeout=context.config.timeouts.command)
    contents.take_back(waiting.record)
    waiting.workspace.close(remove=True)
    return 0
