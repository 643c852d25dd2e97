"""`delete ID` of a container that `create` restored and that was never started.

runc deletes a created container without --force; to the downstream this one is running.
"""

from grit_runtime.verbs.waiting import Waiting


def run(waiting: Waiting) -> int:
    """Kill and delete it, and forget the restore."""
    context = waiting.context
    context.downstream.require("delete", "--force", context.container, timeout=context.config.timeouts.command)
    waiting.workspace.close(remove=True)
    return 0
